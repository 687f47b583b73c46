// Package netif makes and removes the interfaces of the switch inside network
// namespaces: a TAP whose queues the daemon gets, its addresses, neighbours and
// routes.
//
// It is all that needs privilege in the namespace it works on, and what the CNI
// plugin does for a pod and `vswitch host attach` for a host. What an interface is to
// be like the daemon says (control/api); the package decides nothing and keeps
// no state. The daemon itself never calls it.
package netif
