package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"vswitch/control/api"
	"vswitch/internal/netif"
	"vswitch/tap"
)

// add is CNI ADD. Nothing is made before all that was given has been checked.
func (p *plugin) add(args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData, strict)
	if err != nil {
		return err
	}
	a, err := parseAttachment(args, c)
	if err != nil {
		return err
	}
	ns, err := openPodNetns(args)
	if err != nil {
		return netnsError(args.Netns, err)
	}
	defer ns.Close()
	if err := checkNameFree(ns, args.IfName); err != nil {
		return err
	}
	job := &addition{conf: c, attachment: a, netns: ns}
	defer job.close()
	return p.run([]step{
		{name: "bury", do: job.bury},
		{name: "lease", do: job.lease, undo: job.release},
		{name: "loopback", do: job.loopback},
		{name: "tap", do: job.create, undo: job.destroy},
		{name: "configure", do: job.configure},
		{name: "queues", do: job.sendQueues},
		{name: "result", do: job.print},
	})
}

// checkNameFree refuses a name that is taken, before anything is leased.
func checkNameFree(ns *netif.Namespace, ifname string) error {
	return ns.Do(func(h *netlink.Handle) error {
		exists, err := netif.Exists(h, ifname)
		if exists {
			return envError("CNI_IFNAME", ifname, "the pod has an interface of this name already")
		}
		return err
	})
}

// addition is an ADD in progress.
type addition struct {
	conf       *conf
	attachment *attachment
	netns      *netif.Namespace

	token string
	dns   api.Resolver // as the daemon has it; empty: nobody answers there
	spec  *netif.Spec
	dev   *tap.Device
}

func (j *addition) close() {
	if j.dev != nil {
		j.dev.Close()
	}
}

// bury carries out a tombstone that a killed DEL of the same attachment left, or
// the daemon would take it for the new one's when it next starts.
func (j *addition) bury() error {
	if !api.HasTombstone(j.conf.Socket, j.attachment.key) {
		return nil
	}
	if err := delPod(j.conf.Socket, j.attachment.key); err != nil {
		return daemonError("cannot delete the attachment's predecessor", err)
	}
	return api.RemoveTombstone(j.conf.Socket, j.attachment.key)
}

func (j *addition) lease() error {
	reply, err := call(j.conf.Socket, api.Client.AddPod, &api.AddPodRequest{
		Key:   j.attachment.key,
		Netns: j.attachment.netns,
		Pod:   j.attachment.pod,

		PortMappings: j.conf.Ports,
	})
	if err != nil {
		failure := daemonError("cannot lease an address", err)
		if interrupted(err) { // it may have been leased all the same
			if err := j.release(); err != nil {
				failure = withDetail(failure, err.Error())
			}
		}
		return failure
	}
	j.token, j.dns = reply.Token, reply.DNS
	if j.spec, err = netif.SpecOfReply(j.attachment.key.Ifname, reply); err != nil {
		return errors.Join(err, j.release())
	}
	return nil
}

func (j *addition) release() error { return release(j.conf.Socket, j.attachment.key) }

func (j *addition) loopback() error { return j.netns.Do(raiseLoopback) }

func (j *addition) create() error {
	return j.netns.Do(func(*netlink.Handle) (err error) {
		j.dev, err = tap.Create(tap.Config{
			Name:       j.spec.Name,
			Queues:     j.spec.Queues,
			Persistent: true,
			Plain:      j.spec.Plain || j.conf.Plain,
		})
		return err
	})
}

// destroy removes the TAP. Its queues may be the daemon's already, so closing
// them would not do.
func (j *addition) destroy() error {
	err := j.netns.Do(func(h *netlink.Handle) error { return netif.RemoveTAP(h, j.spec.Name, nil) })
	if err == nil {
		return nil
	}
	return errors.Join(err, j.dev.Destroy())
}

func (j *addition) configure() error {
	return j.netns.Do(func(h *netlink.Handle) error {
		if err := netif.Configure(h, j.spec); err != nil {
			return fmt.Errorf("interface %s: %w", j.spec.Name, err)
		}
		return nil
	})
}

func (j *addition) sendQueues() error {
	if err := netif.SendQueues(j.conf.Socket, j.token, j.dev); err != nil {
		return daemonError("cannot pass the queues", err)
	}
	return nil
}

func (j *addition) print() error {
	err := types.PrintResult(resultOf(j.conf, j.attachment.netns, j.spec, j.dns), j.conf.CNIVersion)
	if err != nil {
		return types.NewError(types.ErrIOFailure, "cannot write the result", err.Error())
	}
	return nil
}
