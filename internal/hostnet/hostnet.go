// Package hostnet attaches a host to the switch: a TAP in the host's own network
// namespace, or in any that has a network of its own, with routes to pods and
// services and no others. By it the host's processes, a kubelet and host-network pods among
// them, reach pods and services on every node, and are reached.
//
// For the daemon it is an attachment like a pod's, with an address leased from the
// node's pod CIDR (docs/adr/0015-host-attachment.md), so it survives a restart of the daemon as
// pods do. The package runs in the command line, with the privilege that making an
// interface takes; the daemon never calls it.
package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/vishvananda/netlink"

	"vswitch/control/api"
	"vswitch/internal/netif"
	"vswitch/tap"
)

const (
	// DefaultName is the interface's.
	DefaultName = "vswitch0"
	// network is the one that the daemon keeps for hosts (internal/attach).
	network = "host"
	// podNamespace is what stands for a namespace where attachments are listed.
	podNamespace = "host"
	// alias marks the interface as ours, should a daemon have forgotten it.
	alias = "vswitch host attach"
	// initNetns is the namespace of the machine's first process.
	initNetns = "/proc/1/ns/net"
)

// Config says what is attached to which daemon.
type Config struct {
	Socket string // of the daemon, absolute
	Netns  string // path of the namespace; empty: the one this process is in
	Name   string // of the interface; empty: DefaultName
}

// Attachment is what Attach made or found.
type Attachment struct {
	Name   string
	Addrs  []netip.Addr
	Routes []netip.Prefix
	// Existed: nothing was missing. Restored: the daemon had lost its queues and has
	// them again. Repaired: addresses or routes were missing.
	Existed, Restored, Repaired bool
}

// host is one namespace and its place in the daemon's list.
type host struct {
	Config
	ns     *netif.Namespace
	key    api.AttachmentKey
	client api.Client
}

// open finds the namespace.
func open(c Config) (*host, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.Netns == "" {
		var err error
		if c.Netns, err = ownNetns(); err != nil {
			return nil, err
		}
	}
	c.Netns = filepath.Clean(c.Netns)
	if !filepath.IsAbs(c.Netns) {
		return nil, fmt.Errorf("--netns %s: want an absolute path, which the daemon remembers", c.Netns)
	}
	ns, err := netif.OpenNamespace(c.Netns)
	if err != nil {
		return nil, fmt.Errorf("--netns %s: %w", c.Netns, err)
	}
	id, err := ns.ID()
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &host{
		Config: c, ns: ns, client: api.Client{Socket: c.Socket},
		key: api.AttachmentKey{Network: network, ContainerID: fmt.Sprintf("netns-%d", id), Ifname: c.Name},
	}, nil
}

func (h *host) close() { h.ns.Close() }

// ownNetns is a path to this process's namespace that outlives the process.
func ownNetns() (string, error) {
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	first, err := os.Stat(initNetns)
	if errors.Is(err, fs.ErrPermission) { // an ordinary user's, or root's who may not look into it
		return "", fmt.Errorf("whether this is the network namespace of the machine's first process is not to be seen: give the one meant, by a path that lasts, as --netns: %w", err)
	}
	if err != nil || !os.SameFile(own, first) {
		return "", errors.New("this process is not in the network namespace of the machine's first process: give the one meant, by a path that lasts, as --netns")
	}
	return initNetns, nil
}

// Attach makes the interface, if it is not there, and gives its queues to the
// daemon. A failure leaves nothing behind.
func Attach(ctx context.Context, c Config) (*Attachment, error) {
	h, err := open(c)
	if err != nil {
		return nil, err
	}
	defer h.close()
	known, err := h.find(ctx)
	if err != nil {
		return nil, err
	}
	if known != nil {
		link, err := h.link()
		switch {
		case err != nil:
			return nil, err
		case link != nil && link.Attrs().HardwareAddr.String() == known.MAC && known.Attached:
			return h.repair(ctx, known, false)
		case link != nil && link.Attrs().HardwareAddr.String() == known.MAC && known.Token != "":
			if err := netif.Reattach(h.Socket, known); err != nil {
				return nil, err
			}
			return h.repair(ctx, known, true)
		}
		// The daemon knows an interface that isn't there, or one half made.
		if _, err := h.client.DelPod(ctx, &api.DelPodRequest{Key: h.key}); err != nil {
			return nil, err
		}
	}
	if err := h.removeOurs(); err != nil {
		return nil, err
	}
	return h.create(ctx)
}

// repair puts back what is missing of an interface that the daemon has the queues of.
func (h *host) repair(ctx context.Context, known *api.Attachment, restored bool) (*Attachment, error) {
	reply, err := h.client.CheckPod(ctx, &api.CheckPodRequest{Key: known.Key})
	if err != nil {
		return nil, err
	}
	spec, err := netif.SpecOfCheck(reply)
	if err != nil {
		return nil, err
	}
	out := attachmentOf(spec)
	err = h.ns.Do(func(nl *netlink.Handle) (err error) {
		out.Repaired, err = netif.Repair(nl, spec)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", h.Name, err)
	}
	out.Restored, out.Existed = restored, !restored && !out.Repaired
	return out, nil
}

func attachmentOf(s *netif.Spec) *Attachment {
	a := &Attachment{Name: s.Name, Routes: s.Routes}
	for _, addr := range s.Addrs {
		a.Addrs = append(a.Addrs, addr.Addr)
	}
	return a
}

// find is the daemon's record of this attachment, or nil.
func (h *host) find(ctx context.Context) (*api.Attachment, error) {
	reply, err := h.client.ListAttachments(ctx, &api.ListAttachmentsRequest{})
	if err != nil {
		return nil, err
	}
	for _, a := range reply.Attachments {
		if a.Key == h.key {
			return &a, nil
		}
	}
	return nil, nil
}

// link is the interface of that name, or nil.
func (h *host) link() (link netlink.Link, err error) {
	err = h.ns.Do(func(nl *netlink.Handle) error {
		link, err = nl.LinkByName(h.Name)
		if netif.IsNotFound(err) {
			link, err = nil, nil
		}
		return err
	})
	return link, err
}

// removeOurs removes an interface that an Attach left which was killed, and
// refuses to touch any other.
func (h *host) removeOurs() error {
	link, err := h.link()
	if link == nil || err != nil {
		return err
	}
	if !netif.IsTAP(link) || link.Attrs().Alias != alias {
		return fmt.Errorf("interface %s is there already and not ours; give another --name", h.Name)
	}
	return h.ns.Do(func(nl *netlink.Handle) error { return netif.RemoveTAP(nl, h.Name, nil) })
}

// create leases addresses, makes the interface, and gives its queues to the daemon.
func (h *host) create(ctx context.Context) (_ *Attachment, err error) {
	pod, err := h.pod(ctx)
	if err != nil {
		return nil, err
	}
	reply, err := h.client.AddPod(ctx, &api.AddPodRequest{Key: h.key, Netns: h.Netns, Host: true, Pod: pod})
	if err != nil {
		return nil, err
	}
	undo := func() { // the call's own context may be why it failed
		_, delErr := h.client.DelPod(context.WithoutCancel(ctx), &api.DelPodRequest{Key: h.key})
		err = errors.Join(err, delErr)
	}
	spec, err := netif.SpecOfReply(h.Name, reply)
	if err != nil {
		undo()
		return nil, err
	}
	if err = h.make(spec, reply.Token); err != nil {
		undo()
		return nil, err
	}
	return attachmentOf(spec), nil
}

// make makes the interface and passes its queues; it leaves none after an error.
func (h *host) make(spec *netif.Spec, token string) error {
	var dev *tap.Device
	err := h.ns.Do(func(nl *netlink.Handle) (err error) {
		dev, err = tap.Create(tap.Config{Name: h.Name, Queues: spec.Queues, Persistent: true, Plain: spec.Plain})
		if err != nil {
			return err
		}
		link, err := nl.LinkByName(h.Name)
		if err != nil {
			return err
		}
		if err := nl.LinkSetAlias(link, alias); err != nil {
			return err
		}
		if err := netif.Configure(spec); err != nil {
			return err
		}
		return netif.AwaitAddresses(spec)
	})
	if dev == nil {
		return fmt.Errorf("interface %s: %w", h.Name, err)
	}
	defer dev.Close()
	if err == nil {
		err = netif.SendQueues(h.Socket, token, dev)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("interface %s: %w", h.Name, err)
	return errors.Join(err, h.ns.Do(func(nl *netlink.Handle) error { return netif.RemoveTAP(nl, h.Name, nil) }))
}

var lastingName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$`)

// pod is by what name the attachment is listed: the node's, or that of the
// namespace where it is another.
func (h *host) pod(ctx context.Context) (api.Pod, error) {
	if h.Netns != initNetns {
		if name := filepath.Base(h.Netns); lastingName.MatchString(name) {
			return api.Pod{Namespace: podNamespace, Name: name}, nil
		}
		return api.Pod{Namespace: podNamespace, Name: h.key.ContainerID}, nil
	}
	v, err := h.client.Version(ctx, &api.VersionRequest{})
	if err != nil {
		return api.Pod{}, err
	}
	return api.Pod{Namespace: podNamespace, Name: v.Node}, nil
}

// Detach removes the interface and what belongs to it; that there is none is no error.
// Where no daemon runs the next one frees the addresses.
func Detach(ctx context.Context, c Config) error {
	h, err := open(c)
	if err != nil {
		return err
	}
	defer h.close()
	known, err := h.find(ctx)
	absent := errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
	if err != nil && !absent {
		return err
	}
	var mac net.HardwareAddr
	if known != nil {
		if mac, err = net.ParseMAC(known.MAC); err != nil {
			return fmt.Errorf("daemon's answer: mac: %w", err)
		}
	}
	link, err := h.link()
	if err != nil {
		return err
	}
	ours := link != nil && netif.IsTAP(link) && (link.Attrs().Alias == alias || mac != nil && link.Attrs().HardwareAddr.String() == mac.String())
	if ours {
		if err := h.ns.Do(func(nl *netlink.Handle) error { return netif.RemoveTAP(nl, h.Name, nil) }); err != nil {
			return err
		}
	}
	if absent {
		if !ours {
			return nil
		}
		return api.WriteTombstone(h.Socket, h.key)
	}
	_, err = h.client.DelPod(ctx, &api.DelPodRequest{Key: h.key})
	if api.CodeOf(err) == api.NotFound {
		return nil
	}
	return err
}
