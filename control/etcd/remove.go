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
	var first leaseState
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
		if first.id == 0 {
			first = l
		}
		if l.id != 0 && (l.id != first.id || l.ends.After(first.ends.Add(time.Second))) { // a lease counts in seconds
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

// leaseState is a lease and when it ends, unless it is renewed.
type leaseState struct {
	id   clientv3.LeaseID
	ends time.Time
}

// leaseOf reads the lease of a node; the zero value if it has none.
func (s *Store) leaseOf(ctx context.Context, name string) (leaseState, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	r, err := s.client.Get(ctx, s.key("leases", name))
	if err != nil || len(r.Kvs) == 0 {
		return leaseState{}, s.wrap(err)
	}
	id := clientv3.LeaseID(r.Kvs[0].Lease)
	ttl, err := s.client.TimeToLive(ctx, id)
	if err != nil || ttl.TTL < 0 {
		return leaseState{}, s.wrap(err)
	}
	return leaseState{id, time.Now().Add(time.Duration(ttl.TTL) * time.Second)}, nil
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
