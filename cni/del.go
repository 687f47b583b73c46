package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"vswitch/control/api"
	"vswitch/internal/netif"
)

// del is CNI DEL. It works with nothing left of the attachment, or anything; the
// TAP goes first, then the lease. Failing to remove the TAP does not hold up the
// lease: without the daemon's end it carries nothing.
func (p *plugin) del(args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData, lenient)
	if err != nil {
		return err
	}
	var failure *types.Error
	if err := p.delTAP(args); errors.Is(err, errOwnNetns) {
		return netnsError(args.Netns, err) // a mistake of the caller's
	} else if err != nil {
		failure = asError("remove the TAP", err)
	}
	err = p.pass("lease")
	if err == nil {
		err = release(c.Socket, attachmentKey(args, c))
	}
	switch {
	case failure == nil:
		return err
	case err != nil:
		return withDetail(failure, err.Error())
	}
	return failure
}

// delTAP removes the TAP, if its namespace is there still.
func (p *plugin) delTAP(args *skel.CmdArgs) error {
	if args.Netns == "" {
		return nil
	}
	ns, err := openPodNetns(args)
	if errors.Is(err, netif.ErrNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := p.pass("tap"); err != nil {
		return err
	}
	return ns.Do(func(h *netlink.Handle) error { return netif.RemoveTAP(h, args.IfName, nil) })
}

// release frees the addresses of an attachment. Where no daemon runs it leaves
// it to the next one (control/api/tombstone.go), so that pods can be removed
// while the daemon is down and no address is lost. If that is impossible too, or
// a daemon is there and doesn't answer, the error is 11: the runtime repeats DEL.
func release(socket string, key api.AttachmentKey) error {
	err := delPod(socket, key)
	if err == nil {
		return api.RemoveTombstone(socket, key)
	}
	if !absentDaemon(err) && api.CodeOf(err) != api.Unavailable {
		return daemonError("cannot free the addresses", err)
	}
	if tombErr := api.WriteTombstone(socket, key); tombErr != nil {
		return daemonError("cannot free the addresses", fmt.Errorf("%w; %w", err, tombErr))
	}
	switch err := delPod(socket, key); {
	case err == nil:
		return api.RemoveTombstone(socket, key)
	case absentDaemon(err):
		return nil // whichever daemon listens from now on finds the tombstone
	default:
		return daemonError("cannot free the addresses", err)
	}
}

func delPod(socket string, key api.AttachmentKey) error {
	_, err := call(socket, api.Client.DelPod, &api.DelPodRequest{Key: key})
	return err
}
