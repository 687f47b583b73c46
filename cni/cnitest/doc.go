// Package cnitest is a daemon for tests of the CNI plugin: the API of
// control/api/v1 and the fd socket, in the test's own process. It leases
// addresses, takes queues, and answers pings to the gateway on them, so that a
// test can see whether a pod's interface works. It switches nothing.
//
// Its semantics are those vswitch.proto states, kept to the letter where the
// plugin relies on them; Stop and Start give it the daemon's restarts.
package cnitest
