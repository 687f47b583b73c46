// Package cni is the CNI plugin (CNI specification 0.3.1 to 1.1.0): it gives a
// pod a TAP in the pod's own network namespace and hands the queues of that TAP
// to the daemon, which switches what passes through them.
//
// The plugin is thin. Addresses, MAC and MTU are the daemon's decisions, asked
// for over its socket (control/api); what the plugin does itself is what needs
// the pod's namespace: netlink, sysctls, opening the TAP. It keeps no state. Each
// invocation is a process of its own, and may be killed at any instruction; what
// it leaves then is either a lease that DEL, GC or the daemon's PendingTimeout
// frees, or a TAP in a namespace that DEL removes, or that dies with the pod.
//
// The order of ADD and DEL follows from that:
//
//	ADD: lease -> TAP -> addresses and routes -> queues to the daemon -> result
//	DEL: TAP -> lease
//
// so that an address is never leased again while a TAP still carries it. See
// add.go, del.go, and control/api/tombstone.go for DEL without a daemon.
//
// Nothing may import it but cmd/vswitch-cni.
package cni
