package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/control"
)

// presence keeps this node alive in the store: its lease renewed three times in
// its life, its record there and its own. The same heartbeat shows whether the
// store can be reached, and whether it is still the one it was: a store restored
// from a backup, or begun anew, has another past, and everything is said again.
func (s *Store) presence(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.claimed:
	}
	var h heart
	beat := time.NewTimer(0)
	defer beat.Stop()
	sweep := time.NewTicker(max(s.cfg.CIDRGrace/100, time.Second))
	defer sweep.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			// The lease is left to run out: a daemon that is back before then was
			// never away, as a restart should look to other nodes.
			return nil
		case <-sweep.C:
			if err := s.sweep(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, control.ErrUnavailable) {
				s.log.Warn("silent nodes not looked after", "err", err)
			}
			continue
		case <-beat.C:
		}
		err := s.beat(ctx, &h)
		var conflict *control.ConflictError
		switch {
		case ctx.Err() != nil:
			continue
		case errors.As(err, &conflict):
			return err
		case err != nil:
			failures++
			s.reachable(false, err)
			beat.Reset(min(time.Duration(failures)*100*time.Millisecond, reconnectMax, s.cfg.LeaseTTL/3))
		default:
			failures = 0
			s.reachable(true, nil)
			beat.Reset(s.cfg.LeaseTTL / 3)
		}
	}
}

// heart is what one heartbeat leaves to the next.
type heart struct {
	lease    clientv3.LeaseID // 0: none
	revision int64            // of the store, as last seen
}

// beat looks whether everything is as it should be and mends what is not.
func (s *Store) beat(ctx context.Context, h *heart) error {
	ctx, cancel := s.request(ctx)
	defer cancel()
	if h.lease != 0 {
		if _, err := s.client.KeepAliveOnce(ctx, h.lease); errors.Is(err, rpctypes.ErrLeaseNotFound) {
			h.lease = 0
		} else if err != nil {
			return s.wrap(err)
		}
	}
	c := s.currentClaim()
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.key("cluster")),
		clientv3.OpGet(s.key("nodes", c.Node)),
		clientv3.OpGet(s.key("leases", c.Node)), // not keys alone: that leaves out the lease
	).Commit()
	if err != nil {
		return s.wrap(err)
	}
	other := r.Header.Revision < h.revision || clusterID(kvsOf(r, 0)) != c.cluster
	if other {
		s.log.Warn("store is not the one it was; saying everything again")
	}
	h.revision = r.Header.Revision
	if other || revisionOf(kvsOf(r, 1)) != c.revision {
		got, err := s.claimOnce(ctx, c.Claim)
		if err != nil {
			return err
		}
		s.setClaim(got)
		s.pods.again()
	}
	if other {
		s.startOver()
	}
	if kvs := kvsOf(r, 2); h.lease == 0 || len(kvs) == 0 || kvs[0].Lease != int64(h.lease) {
		return s.takeLease(ctx, h)
	}
	return nil
}

func clusterID(cluster []*mvccpb.KeyValue) string {
	var c clusterConfig
	if len(cluster) == 0 || json.Unmarshal(cluster[0].Value, &c) != nil {
		return ""
	}
	return c.ID
}

// takeLease makes the record of this node's life.
func (s *Store) takeLease(ctx context.Context, h *heart) error {
	c := s.currentClaim()
	if h.lease == 0 {
		g, err := s.client.Grant(ctx, int64(s.cfg.LeaseTTL/time.Second))
		if err != nil {
			return s.wrap(err)
		}
		h.lease = g.ID
	}
	now, ttl := metav1.NowMicro(), int32(s.cfg.LeaseTTL/time.Second)
	value, err := encode(&coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: c.Node},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &c.Instance, LeaseDurationSeconds: &ttl, AcquireTime: &now},
	})
	if err != nil {
		return err
	}
	r, err := s.client.Txn(ctx).If(unchanged(s.key("nodes", c.Node), s.currentClaim().revision)).Then(
		clientv3.OpPut(s.key("leases", c.Node), value, clientv3.WithLease(h.lease)),
		clientv3.OpDelete(s.key("silent", c.Node)),
	).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		h.lease = 0
		return s.wrap(err)
	case err != nil:
		return s.wrap(err)
	case !r.Succeeded:
		return errRaced
	}
	s.pods.again() // whoever removed the lease's records may have removed the pods'
	return nil
}

// silence is since when a node has had no lease, as the first to notice wrote it.
type silence struct {
	Since time.Time `json:"since"`
}

// sweep notes which vswitch nodes fell silent and removes those that have been for
// the grace, so that their pod CIDRs are free again. Time counts from when another
// node noticed: a cluster that was shut down for a week loses nothing.
func (s *Store) sweep(ctx context.Context) error {
	ctx, cancel := s.request(ctx)
	defer cancel()
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.kindPrefix(control.KindNode), clientv3.WithPrefix()),
		clientv3.OpGet(s.kindPrefix(control.KindLease), clientv3.WithPrefix(), clientv3.WithKeysOnly()),
		clientv3.OpGet(s.key("silent")+"/", clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return s.wrap(err)
	}
	live := map[string]bool{}
	for _, kv := range kvsOf(r, 1) {
		live[string(kv.Key)] = true
	}
	silent := map[string]silentRecord{}
	for _, kv := range kvsOf(r, 2) {
		var v silence
		if json.Unmarshal(kv.Value, &v) == nil {
			silent[string(kv.Key)] = silentRecord{v.Since, kv.ModRevision}
		}
	}
	for _, n := range decodeAll[*corev1.Node](s, kvsOf(r, 0)) {
		if n.Annotations[control.AnnotationInstance] == "" || n.Name == s.cfg.Node || live[s.key("leases", n.Name)] {
			continue
		}
		if err := s.noteSilent(ctx, n.Name, silent[s.key("silent", n.Name)]); err != nil {
			return err
		}
	}
	return nil
}

type silentRecord struct {
	since    time.Time
	revision int64 // 0: not noted yet
}

func (s *Store) noteSilent(ctx context.Context, node string, rec silentRecord) error {
	key, now := s.key("silent", node), time.Now()
	if rec.revision == 0 {
		value, err := json.Marshal(silence{now.UTC()})
		if err != nil {
			return err
		}
		_, err = s.client.Txn(ctx).If(missing(key), missing(s.key("leases", node)), exists(s.key("nodes", node))).
			Then(clientv3.OpPut(key, string(value))).Commit()
		return s.wrap(err)
	}
	if now.Sub(rec.since) < s.cfg.CIDRGrace {
		return nil
	}
	r, err := s.client.Txn(ctx).If(missing(s.key("leases", node)), unchanged(key, rec.revision)).
		Then(s.nodeRemoval(node)...).Commit()
	if err == nil && r.Succeeded {
		s.log.Warn("node silent for too long; its record and pod CIDRs are freed", "node", node, "since", rec.since)
	}
	return s.wrap(err)
}

// nodeRemoval removes everything a node has in the store.
func (s *Store) nodeRemoval(node string) []clientv3.Op {
	return []clientv3.Op{
		clientv3.OpDelete(s.key("nodes", node)),
		clientv3.OpDelete(s.key("silent", node)),
		clientv3.OpDelete(s.kindPrefix(control.KindPod)+node+"/", clientv3.WithPrefix()),
		clientv3.OpPut(s.key("guard", "nodes"), node),
	}
}
