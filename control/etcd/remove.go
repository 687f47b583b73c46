package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"vswitch/control"
)

// deleteNode removes a node that is gone. One that stopped a moment ago still has
// its lease, so the lease is watched: it ends, or it outlives its time and so was
// renewed by a node that lives.
func (s *Store) deleteNode(ctx context.Context, name string) error {
	var watch leaseWatch
	for {
		removed, found, err := s.removeNode(ctx, name)
		if err != nil || removed {
			return err
		}
		if !found {
			return fmt.Errorf("node %s: %w", name, control.ErrNotFound)
		}
		l, err := s.leaseOf(ctx, name)
		if err != nil {
			return err
		}
		if watch.renewed(l) {
			return &control.ConflictError{
				What: "node name " + name, Holder: "a vswitch that runs and renews its lease",
				Advice: "stop that one first",
			}
		}
		select {
		case <-ctx.Done():
			return s.wrap(ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// leaseState is a lease and when it ends, unless it is renewed. The zero value is
// none, or one whose time is over and which the store has yet to take away.
type leaseState struct {
	id   clientv3.LeaseID
	ends time.Time // at most a second early, as the store counts in whole ones
}

// leaseWatch tells a lease that runs out from one that is renewed.
type leaseWatch struct{ first leaseState }

// renewalSlack is more than two looks at one lease can differ by, a second and
// what the store took to answer, and less than a renewal adds (LeaseTTL/3).
const renewalSlack = 2 * time.Second

// renewed reports whether a lease, looked at again, has been renewed since the
// first look, or another one taken.
func (w *leaseWatch) renewed(l leaseState) bool {
	switch {
	case l.id == 0:
		return false
	case w.first.id == 0:
		w.first = l
		return false
	}
	return l.id != w.first.id || l.ends.After(w.first.ends.Add(renewalSlack))
}

// leaseOf reads the lease of a node.
func (s *Store) leaseOf(ctx context.Context, name string) (leaseState, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	r, err := s.client.Get(ctx, s.key("leases", name))
	if err != nil || len(r.Kvs) == 0 {
		return leaseState{}, s.wrap(err)
	}
	id := clientv3.LeaseID(r.Kvs[0].Lease)
	asked := time.Now()
	ttl, err := s.client.TimeToLive(ctx, id)
	if err != nil || ttl.TTL <= 0 { // an expired lease says 0 until it is revoked, -1 afterwards
		return leaseState{}, s.wrap(err)
	}
	return leaseState{id, asked.Add(time.Duration(ttl.TTL) * time.Second)}, nil
}

// removeNode removes a node that has no lease.
func (s *Store) removeNode(ctx context.Context, name string) (removed, found bool, err error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	r, err := s.client.Txn(ctx).
		If(exists(s.key("nodes", name)), missing(s.key("leases", name))).
		Then(s.nodeRemoval(name)...).
		Else(clientv3.OpGet(s.key("nodes", name), clientv3.WithCountOnly())).
		Commit()
	if err != nil {
		return false, false, s.wrap(err)
	}
	if r.Succeeded {
		return true, true, nil
	}
	return false, kvsCount(r, 0) > 0, nil
}

func kvsCount(r *clientv3.TxnResponse, i int) int64 {
	return r.Responses[i].GetResponseRange().Count
}
