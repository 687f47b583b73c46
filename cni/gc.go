package cni

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/vishvananda/netlink"

	"vswitch/control/api"
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
	request := &api.GCRequest{Network: c.Network}
	for _, v := range c.Valid {
		request.Valid = append(request.Valid, api.AttachmentKey{
			Network: c.Network, ContainerID: v.ContainerID, Ifname: v.IfName,
		})
	}
	reply, err := call(c.Socket, api.Client.GC, request)
	if err != nil {
		return daemonError("cannot collect garbage", err)
	}
	var errs []error
	for _, f := range reply.Failed {
		errs = append(errs, fmt.Errorf("%s: %s", keyText(f.Key), f.Error))
	}
	for _, a := range reply.Removed {
		if err := removeStale(&a); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", keyText(a.Key), err))
		}
	}
	return errors.Join(errs...)
}

// removeStale removes the TAP of an attachment the daemon has forgotten. The path
// recorded may lead to another pod by now; the MAC tells.
func removeStale(a *api.Attachment) error {
	mac, err := net.ParseMAC(a.MAC)
	if err != nil {
		return err
	}
	ns, err := netif.OpenNamespace(a.Netns)
	if errors.Is(err, netif.ErrNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func(h *netlink.Handle) error { return netif.RemoveTAP(h, a.Key.Ifname, mac) })
}

func keyText(k api.AttachmentKey) string {
	return k.ContainerID + "/" + k.Ifname
}
