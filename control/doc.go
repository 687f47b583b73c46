// Package control decides what a node's dataplane should hold, and brings it there.
//
// It is the pure middle of the control plane: Kubernetes
// objects in, desired State out, then the difference to what is programmed, in
// an order that is safe to apply. It opens no file, no socket and no packet;
// clocks come in as values. What does the reaching out sits below it and beside
// it: control/etcd (the objects' store), control/embedded (the store's own
// process), control/ipam (addresses of this node's pods), control/statefile
// (files that survive a crash). What it drives is a Dataplane, which the caller
// gives it.
//
//	store --Reset/Update--> Controller{ Objects --State--> Reconciler } --> Dataplane
//	                             |
//	                             +--> LastGood (objects, for the next start)
//
// A daemon joins the parts in this order:
//
//	c := control.NewController(control.ControllerConfig{Self: self, Dataplane: dp, LastGood: snapshot, Log: log})
//	c.Restore(objects)              // forward from the snapshot before any source answers
//	go c.Run(ctx)
//	claim, err := store.ClaimNode(ctx, want) // or the claim kept on disk, while the store is away
//	store.LoadPods(pods)            // attachments that survived the restart
//	go store.Run(ctx, c)
//
// Three promises, each with a test: nothing is deleted from
// the dataplane before a full list was seen; a list that would take away more
// than half is held for a grace; and losing the store changes nothing.
package control
