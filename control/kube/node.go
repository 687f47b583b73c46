package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"vswitch/control"
)

// ClaimNode waits for this node's Node and its pod CIDRs, which Kubernetes gives, and
// writes there how others reach this node. It tries until ctx ends; only a plan that
// is not the cluster's is final.
func (s *Source) ClaimNode(ctx context.Context, want control.Claim) (control.Claim, error) {
	want = want.WithDefaults()
	if want.Node != s.cfg.Node {
		return want, fmt.Errorf("API server: claim for node %q by node %q", want.Node, s.cfg.Node)
	}
	said := ""
	for attempt := 0; ; attempt++ {
		n, err := s.client.node(ctx, want.Node)
		if err == nil {
			want.PodCIDRs, err = podCIDRs(n, &want)
			var mismatch *control.MismatchError
			if errors.As(err, &mismatch) {
				return want, err
			}
		}
		if err == nil {
			err = s.patch(ctx, n, &want)
		}
		if err == nil {
			s.setClaim(&want)
			return want, nil
		}
		if ctx.Err() != nil {
			return want, errors.Join(ctx.Err(), err)
		}
		if apierrors.IsNotFound(err) {
			err = fmt.Errorf("there is no Node %s: a kubelet makes it; or want --node to be its name", want.Node)
		}
		if said != err.Error() {
			said = err.Error()
			s.log.Warn("waiting for this node's pod CIDRs", "node", want.Node, "err", err)
		}
		if !pause(ctx, min(attempt, 3)) {
			return want, errors.Join(ctx.Err(), err)
		}
	}
}

// podCIDRs are those that Kubernetes gave a node.
func podCIDRs(n *corev1.Node, want *control.Claim) ([]netip.Prefix, error) {
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR == "" {
		return nil, fmt.Errorf("node %s has no spec.podCIDRs yet: kube-controller-manager gives them when run with --allocate-node-cidrs and --cluster-cidr", n.Name)
	}
	out, err := control.NodePrefixes(n)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	for _, p := range out {
		if !slices.ContainsFunc(want.ClusterCIDRs, func(c netip.Prefix) bool { return c.Overlaps(p) && c.Bits() <= p.Bits() }) {
			return nil, &control.MismatchError{
				Flag: "--cluster-cidr", Value: fmt.Sprint(want.ClusterCIDRs),
				Common: fmt.Sprintf("given this node %s: kube-controller-manager's --cluster-cidr is another", p),
			}
		}
	}
	return out, nil
}

func (s *Source) setClaim(c *control.Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claim == nil {
		close(s.claimed)
	}
	s.claim = c
	s.lookAtOwnNode()
}

// annotations are what a Node must say for others to reach it; of those of
// control.NodeAnnotations that are not among them there is to be none.
func annotations(c *control.Claim) map[string]string {
	out := control.NewNode(*c).Annotations
	maps.Copy(out, control.FlannelAnnotations(c.Facts))
	return out
}

// patch writes a claim's annotations where the Node has others.
func (s *Source) patch(ctx context.Context, n *corev1.Node, c *control.Claim) error {
	want := annotations(c)
	change := map[string]*string{} // nil: to be removed
	for _, k := range nodeAnnotations {
		has, there := n.Annotations[k]
		switch v, wanted := want[k]; {
		case wanted && has != v:
			change[k] = &v
		case !wanted && there:
			change[k] = nil
		}
	}
	if len(change) == 0 {
		return nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": change}})
	if err != nil {
		return err
	}
	if err := s.client.patchNode(ctx, c.Node, body); err != nil {
		return fmt.Errorf("annotations of Node %s: %w", c.Node, err)
	}
	s.log.Info("this node's tunnel is published", "node", c.Node, "underlay", want[control.AnnotationUnderlay])
	return nil
}

// lookAtOwnNode compares this node's Node with what it should be. Pods' addresses
// can't change, so other pod CIDRs end the node. Callers hold mu.
func (s *Source) lookAtOwnNode() {
	n, _ := s.mirrors[control.KindNode].objs[control.Key{Kind: control.KindNode, Name: s.cfg.Node}].(*corev1.Node)
	if s.claim == nil || n == nil || !s.mirrors[control.KindNode].synced {
		return
	}
	if len(n.Spec.PodCIDRs) > 0 || n.Spec.PodCIDR != "" {
		has, err := podCIDRs(n, s.claim)
		if err == nil && !slices.Equal(has, s.claim.PodCIDRs) {
			err = fmt.Errorf("they are %v now", has)
		}
		if err != nil {
			s.fail(fmt.Errorf("the pod CIDRs %v of node %s are no longer the Node's: %w; its pods must be made anew: drain it and start vswitch again",
				s.claim.PodCIDRs, s.cfg.Node, err))
			return
		}
	}
	for k, v := range annotations(s.claim) {
		if n.Annotations[k] != v {
			poke(s.publish)
			return
		}
	}
}

// publishNode writes the Node's annotations again whenever they are found to be
// others: the Node was deleted and made anew, or somebody edited it.
func (s *Source) publishNode(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.claimed:
	}
	for attempt := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.publish:
		}
		s.mu.Lock()
		c := *s.claim
		s.mu.Unlock()
		n, err := s.client.node(ctx, c.Node)
		if err == nil {
			err = s.patch(ctx, n, &c)
		}
		switch {
		case err == nil:
			attempt = 0
		case apierrors.IsNotFound(err): // until it is made again, which is heard
		default:
			if attempt == 0 && ctx.Err() == nil {
				s.log.Warn("this node's tunnel is not published; retrying", "err", err)
			}
			attempt++
			poke(s.publish)
		}
		if !pause(ctx, attempt) { // two that write against each other do so slowly
			return
		}
	}
}
