package cnitest

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"vswitch/control/api"
	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/fdpass"
)

// What every pod is told.
const (
	Gateway4   = "169.254.1.1"
	Gateway6   = "fe80::1"
	GatewayMAC = "02:76:73:77:00:01"
)

// Config says what the daemon leases and tells.
type Config struct {
	// Addresses is how many of each family there are; zero: 250.
	Addresses int
	// MTUBytes and Queues of a pod; zero: 1400, 2.
	MTUBytes, Queues uint32
	// GSOMaxBytes and TxQueueFrames as in AddPodReply.
	GSOMaxBytes, TxQueueFrames uint32
	// Plain asks for TAPs without a virtio-net header.
	Plain bool
	// NoIPv6 leases IPv4 alone.
	NoIPv6 bool
}

// Daemon is a running, or stopped, daemon. Its records outlive Stop, its queues
// don't.
type Daemon struct {
	apiv1.UnimplementedNodeServer

	// Socket is the path of the API's socket.
	Socket string

	t      testing.TB
	config Config

	server *grpc.Server
	fds    *fdpass.Server
	served sync.WaitGroup

	mu       sync.Mutex
	pods     map[string]*record // by key; guarded by mu, as all below
	failures map[string]error   // by method
	notReady string
}

type record struct {
	*apiv1.Attachment
	slot   int // of the address pool, and in the MAC
	queues []*responder
}

// New starts a daemon that stops with the test.
func New(t testing.TB, c Config) *Daemon {
	t.Helper()
	if c.Addresses == 0 {
		c.Addresses = 250
	}
	if c.MTUBytes == 0 {
		c.MTUBytes = 1400
	}
	if c.Queues == 0 {
		c.Queues = 2
	}
	// Not t.TempDir: that carries the test's name, and socket paths are short.
	dir, err := os.MkdirTemp("", "vs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &Daemon{
		Socket:   filepath.Join(dir, "run", "vswitch.sock"),
		t:        t,
		config:   c,
		pods:     map[string]*record{},
		failures: map[string]error{},
	}
	if err := os.Mkdir(filepath.Dir(d.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	d.Start()
	t.Cleanup(d.Stop)
	return d
}

// Start begins to listen, and carries out the tombstones. The order is that of
// control/api/tombstone.go.
func (d *Daemon) Start() {
	d.t.Helper()
	l, err := fdpass.Bind("unix", d.Socket)
	if err != nil {
		d.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if d.fds, err = fdpass.Listen(api.FDSocket(d.Socket), d.takeQueues, log); err != nil {
		d.t.Fatal(err)
	}
	keys, err := api.Tombstones(d.Socket)
	if err != nil {
		d.t.Error(err)
	}
	for _, key := range keys {
		d.Forget(key)
		if err := api.RemoveTombstone(d.Socket, key); err != nil {
			d.t.Error(err)
		}
	}
	d.server = grpc.NewServer(grpc.UnaryInterceptor(d.inject))
	apiv1.RegisterNodeServer(d.server, d)
	fds, server := d.fds, d.server
	d.served.Go(func() { fds.Serve(context.Background()) })
	d.served.Go(func() { server.Serve(l) })
}

// Stop ends the daemon as if it were killed: its queues are closed, its records
// kept. It is idempotent.
func (d *Daemon) Stop() {
	if d.server == nil {
		return
	}
	d.server.Stop()
	d.fds.Close()
	d.served.Wait()
	d.server, d.fds = nil, nil
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pods {
		p.closeQueues()
	}
}

// Fail makes a method ("AddPod", or "fds" for the fd socket) answer with err
// instead of doing its work, or after it ("AddPod:after"); nil ends that.
func (d *Daemon) Fail(method string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures[method] = err
}

// SetNotReady makes Status say so, with a reason; empty ends that.
func (d *Daemon) SetNotReady(reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notReady = reason
}

// Attachments is what is recorded, sorted by container id.
func (d *Daemon) Attachments() []*apiv1.Attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*apiv1.Attachment
	for _, p := range d.pods {
		all = append(all, proto.CloneOf(p.Attachment))
	}
	slices.SortFunc(all, func(a, b *apiv1.Attachment) int {
		return strings.Compare(keyString(a.GetKey()), keyString(b.GetKey()))
	})
	return all
}

// Forget removes a record without telling anybody, as a daemon that lost its
// state would.
func (d *Daemon) Forget(key api.AttachmentKey) {
	d.remove(&apiv1.AttachmentKey{Network: key.Network, ContainerId: key.ContainerID, Ifname: key.Ifname})
}

// Record adds an attachment of network "net" that was never leased, as one whose
// DEL never came. Its addresses are nobody's.
func (d *Daemon) Record(containerID, netns, mac string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	slot, err := d.lease()
	if err != nil {
		d.t.Error(err)
		return
	}
	key := &apiv1.AttachmentKey{Network: "net", ContainerId: containerID, Ifname: "eth0"}
	d.pods[keyString(key)] = &record{slot: slot, Attachment: &apiv1.Attachment{Key: key, Netns: netns, Mac: mac}}
}

func (d *Daemon) inject(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	if err := d.failure(method); err != nil {
		return nil, err
	}
	reply, err := handler(ctx, req)
	if err := d.failure(method + ":after"); err != nil {
		return nil, err
	}
	return reply, err
}

func (d *Daemon) failure(method string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failures[method]
}

func keyString(k *apiv1.AttachmentKey) string {
	return k.GetNetwork() + " " + k.GetContainerId() + " " + k.GetIfname()
}

func (d *Daemon) remove(key *apiv1.AttachmentKey) *apiv1.Attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.pods[keyString(key)]
	if p == nil {
		return nil
	}
	p.closeQueues()
	delete(d.pods, keyString(key))
	return p.Attachment
}

func (p *record) closeQueues() {
	for _, q := range p.queues {
		q.close()
	}
	p.queues = nil
	p.Attached = false
}

// takeQueues handles the fd socket.
func (d *Daemon) takeQueues(_ context.Context, m fdpass.Message, fds []int, _ fdpass.Cred) error {
	queues, err := newResponders(fds, m.Features)
	if err != nil {
		return err
	}
	if err := d.attach(m.Token, queues); err != nil {
		for _, q := range queues {
			q.close()
		}
		return err
	}
	return nil
}

func (d *Daemon) attach(token string, queues []*responder) error {
	if err := d.failure("fds"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pods {
		if p.Token != token || token == "" {
			continue
		}
		if len(queues) != int(p.Queues) {
			return fmt.Errorf("%d queues, want %d", len(queues), p.Queues)
		}
		p.closeQueues()
		p.Token, p.Attached, p.queues = "", true, queues
		return nil
	}
	return fmt.Errorf("unknown token")
}

// lease finds the lowest slot nobody has: addresses come back at once, as they
// would hurt most.
func (d *Daemon) lease() (int, error) {
	taken := make([]bool, d.config.Addresses)
	for _, p := range d.pods {
		taken[p.slot] = true
	}
	if i := slices.Index(taken, false); i >= 0 {
		return i, nil
	}
	return 0, status.Errorf(codes.ResourceExhausted, "no address is free in 10.244.1.0/24: all %d are leased", len(taken))
}

// address is slot i of a network, its second host being slot 0.
func address(network string, i int) string {
	a := netip.MustParseAddr(network).Next()
	for range i + 1 {
		a = a.Next()
	}
	return netip.PrefixFrom(a, a.BitLen()).String()
}

func newToken() string { return rand.Text() }

func macOf(slot int) string {
	return net.HardwareAddr{0x02, 0x76, 0x73, 0x01, byte(slot >> 8), byte(slot)}.String()
}
