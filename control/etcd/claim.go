package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
)

// clusterConfig is what all nodes of a cluster must agree on; the first writes it.
// The id tells a store from one that was begun anew in its place, which etcd's own
// cluster id, made from the members' names, does not.
type clusterConfig struct {
	ID           string         `json:"id"`
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	BitsIPv4     int            `json:"bitsIPv4"`
	BitsIPv6     int            `json:"bitsIPv6"`
}

// ClaimNode makes or confirms this node's claim to its name and pod CIDRs. It tries
// until ctx ends while the store is away; a *control.ConflictError or a
// *control.MismatchError is final. Until it returns Run publishes nothing.
func (s *Store) ClaimNode(ctx context.Context, want control.Claim) (control.Claim, error) {
	want = want.WithDefaults()
	if err := want.Validate(); err != nil {
		return want, err
	}
	if want.Node != s.cfg.Node {
		return want, fmt.Errorf("store: claim for node %q by node %q", want.Node, s.cfg.Node)
	}
	for attempt := 0; ; attempt++ {
		got, err := s.claimOnce(ctx, want)
		if errors.Is(err, errRaced) && yield(ctx, attempt) {
			continue
		}
		switch {
		case err == nil:
			s.setClaim(got)
			return got.Claim, nil
		case final(err):
			return want, err
		case attempt == 0 && errors.Is(err, control.ErrUnavailable):
			s.log.Warn("claim of the node's name and pod CIDRs waits for the store", "node", want.Node, "err", err)
		}
		if !pause(ctx, attempt) {
			return want, errors.Join(ctx.Err(), err)
		}
	}
}

func (s *Store) setClaim(c *claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claim == nil {
		close(s.claimed)
	}
	s.claim = c
}

// errRaced: another transaction came between reading and writing.
var errRaced = errors.New("another node allocated at the same time")

// claimOnce tries once to make the store's record of this node say what it should.
func (s *Store) claimOnce(ctx context.Context, want control.Claim) (*claim, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	nodeKey := s.key("nodes", want.Node)
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.key("cluster")),
		clientv3.OpGet(s.key("guard", "nodes")),
		clientv3.OpGet(s.kindPrefix(control.KindNode), clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return nil, s.wrap(err)
	}
	cluster, guard, records := kvsOf(r, 0), kvsOf(r, 1), kvsOf(r, 2)
	config, err := agree(cluster, &want)
	if err != nil {
		return nil, err
	}
	nodes := decodeAll[*corev1.Node](s, records)
	mine, err := ownRecord(nodes, &want)
	if err != nil {
		return nil, err
	}
	if want.PodCIDRs, err = control.AllocateNodeCIDRs(nodes, want); err != nil {
		return nil, err
	}
	record := control.NewNode(want)
	if mine != nil {
		record.UID, record.CreationTimestamp = mine.UID, mine.CreationTimestamp
	} else {
		stamp(record)
	}
	value, err := encode(record)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(records, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == nodeKey })
	if i >= 0 && string(records[i].Value) == value && len(cluster) > 0 {
		return &claim{want, records[i].ModRevision, config.ID}, nil
	}
	configText, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	w, err := s.client.Txn(ctx).
		If(unchanged(s.key("guard", "nodes"), revisionOf(guard)), unchanged(s.key("cluster"), revisionOf(cluster))).
		Then(clientv3.OpPut(nodeKey, value), clientv3.OpPut(s.key("guard", "nodes"), want.Node),
			clientv3.OpPut(s.key("cluster"), string(configText))).
		Commit()
	if err != nil {
		return nil, s.wrap(err)
	}
	if !w.Succeeded {
		return nil, errRaced
	}
	s.log.Info("node claimed", "node", want.Node, "podCIDRs", want.PodCIDRs)
	return &claim{want, w.Header.Revision, config.ID}, nil
}

// ownRecord finds this node's record, and refuses a name that is another's.
func ownRecord(nodes []*corev1.Node, want *control.Claim) (*corev1.Node, error) {
	i := slices.IndexFunc(nodes, func(n *corev1.Node) bool { return n.Name == want.Node })
	if i < 0 {
		return nil, nil
	}
	n := nodes[i]
	switch n.Annotations[control.AnnotationInstance] {
	case want.Instance:
		return n, nil
	case "":
		return nil, &control.ConflictError{
			What: "node name " + want.Node, Holder: "a Node that was applied by hand",
			Advice: "want another --node, or vswitch delete node " + want.Node,
		}
	}
	return nil, &control.ConflictError{
		What:   "node name " + want.Node,
		Holder: "another machine or state directory, at " + n.Annotations[control.AnnotationUnderlay],
		Advice: "want another --node; or, if that one is gone for good, vswitch delete node " + want.Node + " from a node that runs",
	}
}

// agree compares this node's configuration with the cluster's, or makes it the
// cluster's if there is none, and returns that.
func agree(cluster []*mvccpb.KeyValue, want *control.Claim) (clusterConfig, error) {
	mine := clusterConfig{newUUID(), want.ClusterCIDRs, want.ServiceCIDRs, want.BitsIPv4, want.BitsIPv6}
	if len(cluster) == 0 {
		return mine, nil
	}
	var have clusterConfig
	if err := json.Unmarshal(cluster[0].Value, &have); err != nil {
		return have, fmt.Errorf("store: key %q is not readable: %w", cluster[0].Key, err)
	}
	for _, f := range []struct {
		flag      string
		mine, all any
	}{
		{"--cluster-cidr", mine.ClusterCIDRs, have.ClusterCIDRs},
		{"--service-cidr", mine.ServiceCIDRs, have.ServiceCIDRs},
		{"--node-cidr-size-v4", mine.BitsIPv4, have.BitsIPv4},
		{"--node-cidr-size-v6", mine.BitsIPv6, have.BitsIPv6},
	} {
		if m, a := fmt.Sprint(f.mine), fmt.Sprint(f.all); m != a {
			return have, &control.MismatchError{Flag: f.flag, Value: m, Common: a}
		}
	}
	return have, nil
}

func kvsOf(r *clientv3.TxnResponse, i int) []*mvccpb.KeyValue {
	return r.Responses[i].GetResponseRange().Kvs
}
