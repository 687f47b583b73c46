// Package dns answers pods' DNS questions: the names of the cluster's services by
// itself, as the Kubernetes DNS specification (schema version 1.1.0) has them, and
// all others by way of the node's resolvers.
//
// Server turns a query message into an answer and knows no socket; whoever owns
// one calls it (package gateway does, for pods). What names there are it asks of a
// Zone. Forwarder keeps a bounded cache and talks to resolvers through an
// Exchanger, of which Sockets is the real one. It validates no signatures: with
// the DO bit set a pod gets what it needs to do so itself.
//
//	server.go    from message to message: what is refused, sizes, truncation
//	zone.go      what the server must know of the cluster
//	cluster.go   the zone's own names
//	forward.go   the others: one question upstream however many ask
//	cache.go     positive and negative answers (RFC 2308)
//	upstream.go  several resolvers, of which some may be dead
//	resolvconf.go, exchange.go  the host's resolvers and the way to them
package dns
