package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"vswitch/control"
)

// deleteNode removes a node that is gone. One that stopped a moment ago still has
// its lease, so the lease is watched: it ends, or it is renewed and the node lives.
func (s *Store) deleteNode(ctx context.Context, name string) error {
	leaseKey := s.key("leases", name)
	var lease clientv3.LeaseID
	var left int64 // seconds
	for {
		removed, found, err := s.removeNode(ctx, name)
		if err != nil || removed {
			return err
		}
		if !found {
			return fmt.Errorf("Node %s: %w", name, control.ErrNotFound)
		}
		rctx, cancel := s.request(ctx)
		r, err := s.client.Get(rctx, leaseKey)
		if err == nil && len(r.Kvs) > 0 {
			id := clientv3.LeaseID(r.Kvs[0].Lease)
			ttl, terr := s.client.TimeToLive(rctx, id)
			switch {
			case terr != nil:
				err = terr
			case lease != 0 && (id != lease || ttl.TTL > left):
				cancel()
				return &control.ConflictError{
					What: "node name " + name, Holder: "a vswitch that runs and renews its lease",
					Advice: "stop that one first",
				}
			default:
				lease, left = id, ttl.TTL
			}
		}
		cancel()
		if err != nil {
			return s.wrap(err)
		}
		select {
		case <-ctx.Done():
			return s.wrap(ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
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
