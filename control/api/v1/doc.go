// Package apiv1 is the API of a node's daemon: the messages and calls of
// vswitch.proto, and the little that both of their ends have to agree on beside
// them: where the sockets are (socket.go), how to dial (dial.go), and how an
// attachment is deleted while no daemon runs (tombstone.go).
//
// It knows no other package of vswitch. The server is in control, the clients
// are the CNI plugin and the command line.
package apiv1
