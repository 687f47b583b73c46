// Package api is what a daemon and the programs beside it agree on and that takes no time
// to load: where the sockets are (socket.go), how an attachment is deleted while no daemon
// runs (tombstone.go), and a client for the calls about attachments (client.go).
//
// The API itself is control/api/v1. Its generated client is for programs that run for
// longer: gRPC's and protobuf's packages take 3 ms of CPU time to load and 1 ms to connect,
// each time anew in a CNI plugin, whose own work takes little more. So this one speaks as
// much of gRPC over HTTP/2 as one call over a unix socket needs. To the daemon the two are
// alike, of whatever version either is.
package api
