// Package apiv1 is the API of a node's daemon: the messages and calls of
// vswitch.proto, and how to dial (dial.go).
//
// The server is internal/nodeapi, the client the command line. Where the sockets are is
// in control/api, and so is the client of those who make attachments.
package apiv1
