package cni

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/vishvananda/netlink"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/netif"
)

// gc is CNI GC: of the network's attachments, those not listed as valid go. It
// goes on after an error and reports them all.
func (p *plugin) gc(args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData, lenient)
	if err != nil {
		return err
	}
	if c.Valid == nil {
		// Not "none is valid": that would take down every pod of a runtime that
		// merely names the list otherwise.
		return configError("cni.dev/valid-attachments: missing")
	}
	request := &apiv1.GCRequest{Network: c.Network}
	for _, v := range c.Valid {
		request.Valid = append(request.Valid, &apiv1.AttachmentKey{
			Network: c.Network, ContainerId: v.ContainerID, Ifname: v.IfName,
		})
	}
	reply, err := call(c.Socket, apiv1.NodeClient.GC, request)
	if err != nil {
		return daemonError("cannot collect garbage", err)
	}
	var errs []error
	for _, f := range reply.GetFailed() {
		errs = append(errs, fmt.Errorf("%s: %s", keyText(f.GetKey()), f.GetError()))
	}
	for _, a := range reply.GetRemoved() {
		if err := removeStale(a); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", keyText(a.GetKey()), err))
		}
	}
	return errors.Join(errs...)
}

// removeStale removes the TAP of an attachment the daemon has forgotten. The path
// recorded may lead to another pod by now; the MAC tells.
func removeStale(a *apiv1.Attachment) error {
	mac, err := net.ParseMAC(a.GetMac())
	if err != nil {
		return err
	}
	ns, err := netif.OpenNamespace(a.GetNetns())
	if errors.Is(err, netif.ErrNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func(h *netlink.Handle) error { return netif.RemoveTAP(h, a.GetKey().GetIfname(), mac) })
}

func keyText(k *apiv1.AttachmentKey) string {
	return k.GetContainerId() + "/" + k.GetIfname()
}
