package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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
	job := &addition{conf: c, attachment: a}
	defer job.close()
	// All in one thread, which is inside from the first step to the last: the daemon's
	// sockets are files, and reached from every namespace.
	return ns.Run(func() error {
		if err := checkNameFree(args.IfName); err != nil {
			return err
		}
		return p.run([]step{
			{name: "bury", do: job.bury},
			{name: "lease", do: job.lease, undo: job.release},
			{name: "loopback", do: job.loopback},
			{name: "tap", do: job.create, undo: job.destroy},
			{name: "configure", do: job.configure},
			{name: "queues", do: job.sendQueues},
			{name: "addresses", do: job.awaitAddresses},
			{name: "result", do: job.print},
		})
	})
}

// checkNameFree refuses a name that is taken, before anything is leased.
func checkNameFree(ifname string) error {
	exists, err := netif.Exists(ifname)
	if exists {
		return envError("CNI_IFNAME", ifname, "the pod has an interface of this name already")
	}
	return err
}

// addition is an ADD in progress.
type addition struct {
	conf       *conf
	attachment *attachment

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

func (j *addition) loopback() error { return raiseLoopback() }

func (j *addition) create() (err error) {
	j.dev, err = tap.Create(tap.Config{
		Name:       j.spec.Name,
		Queues:     j.spec.Queues,
		Persistent: true,
		Plain:      j.spec.Plain || j.conf.Plain,
	})
	return err
}

// destroy removes the TAP. Its queues may be the daemon's already, so closing
// them would not do.
func (j *addition) destroy() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err == nil {
		defer h.Close()
		err = netif.RemoveTAP(h, j.spec.Name, nil)
	}
	if err == nil {
		return nil
	}
	return errors.Join(err, j.dev.Destroy())
}

func (j *addition) configure() error {
	if err := netif.Configure(j.spec); err != nil {
		return fmt.Errorf("interface %s: %w", j.spec.Name, err)
	}
	return nil
}

func (j *addition) sendQueues() error {
	if err := netif.SendQueues(j.conf.Socket, j.token, j.dev); err != nil {
		return daemonError("cannot pass the queues", err)
	}
	return nil
}

// awaitAddresses comes last: meanwhile the kernel has had the time that it takes.
func (j *addition) awaitAddresses() error { return netif.AwaitAddresses(j.spec) }

func (j *addition) print() error {
	err := types.PrintResult(resultOf(j.conf, j.attachment.netns, j.spec, j.dns), j.conf.CNIVersion)
	if err != nil {
		return types.NewError(types.ErrIOFailure, "cannot write the result", err.Error())
	}
	return nil
}
