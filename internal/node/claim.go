package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vswitch/control"
	"vswitch/control/statefile"
)

// holdClaim makes the node's claim to its name and pod CIDRs. One that was made
// before is held without asking; the store confirms it once it answers.
func (n *node) holdClaim() error {
	want := control.Claim{
		Node: n.cfg.Node, Instance: n.instance, Facts: n.facts,
		ClusterCIDRs: n.cfg.ClusterCIDR, ServiceCIDRs: n.cfg.ServiceCIDR,
		BitsIPv4: n.cfg.NodeBitsV4, BitsIPv6: n.cfg.NodeBitsV6,
	}
	var kept control.Claim
	err := n.claimFile().Read(&kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Error("the node's claim is lost; asking the store", "err", err)
	}
	if err == nil && samePlan(&kept, &want) {
		want.PodCIDRs = kept.PodCIDRs
		n.claim = want
		n.start("claim", func(ctx context.Context) error { return n.confirmClaim(ctx, want) })
		return nil
	}
	if n.claim, err = n.store.ClaimNode(n.ctx, want); err != nil {
		return err
	}
	return n.saveClaim(n.claim)
}

func (n *node) claimFile() statefile.File {
	return statefile.File{Path: n.state.file(claimFile), Kind: "claim", Version: 1}
}

func (n *node) saveClaim(c control.Claim) error {
	n.claimMu.Lock()
	defer n.claimMu.Unlock()
	return n.claimFile().Write(c)
}

// samePlan reports whether a claim kept from before is for the same node and
// address plan as what is wanted now.
func samePlan(kept, want *control.Claim) bool {
	return kept.Node == want.Node && kept.Instance == want.Instance && len(kept.PodCIDRs) > 0 &&
		slices.Equal(kept.ClusterCIDRs, want.ClusterCIDRs) && slices.Equal(kept.ServiceCIDRs, want.ServiceCIDRs) &&
		kept.BitsIPv4 == want.BitsIPv4 && kept.BitsIPv6 == want.BitsIPv6
}

// confirmClaim tells the store of a claim made before. A node that forwards can't
// change its pods' addresses: another answer stops it, and the next start goes by it.
func (n *node) confirmClaim(ctx context.Context, want control.Claim) error {
	got, err := n.store.ClaimNode(ctx, want)
	if err != nil {
		return err
	}
	err = n.saveClaim(got)
	if !slices.Equal(got.PodCIDRs, want.PodCIDRs) {
		return errors.Join(fmt.Errorf("the pod CIDRs %v went to another node while this one was away, and it gets %v: its pods must be made anew: drain the node and start vswitch again", want.PodCIDRs, got.PodCIDRs), err)
	}
	if err != nil { // a full disk; what was kept is as good for the next start
		n.log.Error("the node's claim is not written anew", "err", err)
	}
	return nil
}
