package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/attach"
	"vswitch/vswitch/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// attachments answers each call with what the test put there.
type attachments struct {
	added   attach.Request
	deleted []attach.Key
	valid   []attach.Key
	reply   attach.Attachment
	err     error
}

func (a *attachments) Add(r attach.Request) (attach.Attachment, error) {
	a.added = r
	return a.reply, a.err
}
func (a *attachments) Delete(k attach.Key) error {
	a.deleted = append(a.deleted, k)
	return a.err
}
func (a *attachments) Get(attach.Key) (attach.Attachment, error) { return a.reply, a.err }
func (a *attachments) List() []attach.Attachment {
	detached := a.reply
	detached.State, detached.Token, detached.Ifname = attach.Detached, "secret", "eth1"
	return []attach.Attachment{a.reply, detached}
}
func (a *attachments) Lost() ([]attach.Attachment, error) { return a.List()[1:], a.err }
func (a *attachments) GC(_ string, valid []attach.Key) ([]attach.Attachment, []attach.Failure) {
	a.valid = valid
	return []attach.Attachment{a.reply}, []attach.Failure{{Key: a.reply.Key, Err: errors.New("disk full")}}
}

// objects is a store in memory.
type objects struct {
	held    map[control.Key]control.Object
	version int
	err     error
}

func (o *objects) Apply(_ context.Context, objs []control.Object) ([]control.Object, error) {
	if o.err != nil {
		return nil, o.err
	}
	for _, x := range objs {
		o.version++
		x.SetResourceVersion(fmt.Sprint(o.version))
		o.held[control.KeyOf(x)] = x
	}
	return objs, nil
}

func (o *objects) Delete(_ context.Context, kind control.Kind, namespace, name string) error {
	k := control.Key{Kind: kind, Scope: namespace, Name: name}
	if o.held[k] == nil {
		return fmt.Errorf("%v: %w", k, control.ErrNotFound)
	}
	delete(o.held, k)
	return o.err
}

func (o *objects) List(_ context.Context, kind control.Kind) ([]control.Object, error) {
	var out []control.Object
	for k, x := range o.held {
		if k.Kind == kind {
			out = append(out, x)
		}
	}
	return out, o.err
}

// bench is a server on a socket of its own, and a client of it.
type bench struct {
	*apiv1.Client
	server      *Server
	attachments *attachments
	objects     *objects
	carrier     *carrier
	traced      TraceQuery
	ready       Readiness
	rows        []any
	rowsErr     error
	refused     string
	socket      string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		attachments: &attachments{reply: attach.Attachment{
			Key:   attach.Key{Network: "vswitch", ContainerID: "c1", Ifname: "eth0"},
			Netns: "/run/netns/c1", Pod: attach.Pod{Namespace: "default", Name: "web"},
			Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00:10:244::2")},
			MAC:   frame.MAC{2, 0, 0, 0, 0, 1}, MTUBytes: 1450, Queues: 2, State: attach.Attached, Token: "secret",
		}},
		objects: &objects{held: map[control.Key]control.Object{}},
		socket:  filepath.Join(t.TempDir(), "run", "vswitch.sock"),
		carrier: newCarrier(t),
	}
	b.attachments.reply.State, b.attachments.reply.Token = attach.Attached, ""
	var err error
	b.server, err = Start(b.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.server.Close() })
	b.Client, err = apiv1.Dial(t.Context(), b.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Client.Close() })
	return b
}

func (b *bench) config() Config {
	return Config{
		Socket: b.socket, Node: "a", Version: "v0", Attachments: b.attachments, Objects: b.objects,
		Ready:   func() Readiness { return b.ready },
		Rows:    func(context.Context, string) (iter.Seq[any], error) { return slices.Values(b.rows), b.rowsErr },
		Upgrade: func() error { return nil }, UpgradeRefused: func() (string, error) { return b.refused, nil },
		Gateways: []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")},
		DNSAddrs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}, DNSDomain: "cluster.local", GatewayMAC: "02:76:73:77:00:01", Captures: b.carrier, Trace: b.trace, Log: slog.New(slog.DiscardHandler),
	}
}

func (b *bench) trace(q TraceQuery) (*apiv1.TraceReply, error) {
	b.traced = q
	return &apiv1.TraceReply{Outcome: &apiv1.TraceOutcome{Verdict: "delivered"}}, nil
}

func wantCode(t *testing.T, err error, want codes.Code, texts ...string) {
	t.Helper()
	if status.Code(err) != want {
		t.Fatalf("got %v, want %v", err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("message %q lacks %q", err, text)
		}
	}
}
