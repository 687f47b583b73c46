// Command vswitch-cni is the CNI plugin of vswitch; see package cni.
package main

import (
	"os"

	"vswitch/cni"
)

func main() { os.Exit(cni.Main(os.Args[1:])) }
