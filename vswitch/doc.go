// Package vswitch moves frames between ports: it reads them from queues in
// batches, decides each by the flow table and the FIB, and writes them to
// queues.
//
// It knows no device, no socket and no cluster. A queue is an interface declared
// here and satisfied by the packages tap, tunnel/vxlan and vswitch/gateway;
// internal/node puts them together. Forwarding is that of a router (RFC 1812,
// RFC 8200): pods have host addresses and a link-local gateway, so there is no
// broadcast domain to flood.
//
// What runs where:
//
//	worker.go   one locked OS thread per worker: epoll, batches, transmit
//	forward.go  the decision for one frame, on one screen
//	guard.go    what a pod may say of itself
//	admit.go    the first packet of a flow
//	rewrite.go  a flow's header rewrite
//	quoted.go   ICMP errors about rewritten flows
//	answer.go   frames the switch itself sends
//	port.go     ports and the snapshot that workers see
//	stats.go    counters
//	capture.go  what passes, shown to who asks
//	trace.go    what would become of a frame
package vswitch
