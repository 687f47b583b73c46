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
//	switch.go   ports and workers, made and ended
//	port.go     ports and the snapshot that workers see
//	queue.go    what is asked of queues and of services
//	worker.go   one locked OS thread per worker: epoll, batches, transmit
//	wait.go     how a worker waits
//	stages.go   the way of a batch
//	forward.go  the decision for one frame, on one screen
//	guard.go    what a pod may say of itself
//	admit.go    the first packet of a flow
//	rewrite.go  a flow's header rewrite
//	quoted.go   ICMP errors about rewritten flows
//	fragment.go pieces of datagrams
//	spares.go   frames that outlive their batch
//	cut.go      packets that are larger than their port's MTU
//	ingress.go  clients outside whose pod is on another node
//	answer.go   frames the switch itself sends
//	stats.go    counters
//	capture.go  what passes, shown to who asks
//	trace.go    what would become of a frame
package vswitch
