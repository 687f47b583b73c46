package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
	"vswitch/control/ipam"
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

func TestSocketIsPrivateAndGoesAway(t *testing.T) {
	b := newBench(t)
	for path, want := range map[string]os.FileMode{b.socket: 0o600, filepath.Dir(b.socket): 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := b.server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after Close: %v", err)
	}
	if err := b.server.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestASecondDaemonIsRefused(t *testing.T) {
	b := newBench(t)
	_, err := Start(b.config())
	if err == nil || !strings.Contains(err.Error(), "another daemon") || !strings.Contains(err.Error(), "--socket "+b.socket) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Errorf("the first one afterwards: %v", err)
	}
}

// TestStrangersAreRefused calls as another user. Only root can become one.
func TestStrangersAreRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	b := newBench(t)
	for _, dir := range []string{filepath.Dir(b.socket), filepath.Dir(filepath.Dir(b.socket)), filepath.Dir(filepath.Dir(filepath.Dir(b.socket)))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(b.socket, 0o666); err != nil { // as a careless administrator might
		t.Fatal(err)
	}
	conn := dialAs(t, b.socket, 65534)
	client, err := grpc.NewClient("passthrough:///daemon", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = apiv1.NewNodeClient(client).Version(t.Context(), &apiv1.VersionRequest{})
	wantCode(t, err, codes.PermissionDenied, "65534")
	stream, err := apiv1.NewNodeClient(client).Capture(t.Context(), &apiv1.CaptureRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.PermissionDenied, "65534")
}

// dialAs connects with the credentials of uid: the kernel notes those of the
// thread that connects.
func dialAs(t *testing.T, socket string, uid int) net.Conn {
	t.Helper()
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() { // the thread is not unlocked, so it ends with the goroutine
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{err: errno}
			return
		}
		conn, err := net.Dial("unix", socket)
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.conn
}

func TestAddPodTellsThePluginEverything(t *testing.T) {
	b := newBench(t)
	b.attachments.reply.Token = "t0"
	r, err := b.AddPod(t.Context(), &apiv1.AddPodRequest{
		Key: &apiv1.AttachmentKey{Network: "vswitch", ContainerId: "c1", Ifname: "eth0"}, Netns: "/run/netns/c1",
		Pod: &apiv1.Pod{Namespace: "default", Name: "web", Uid: "u1", Labels: map[string]string{"app": "web"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%v %v %s %s %d %d %s", r.Ips, r.Gateways, r.Mac, r.GatewayMac, r.MtuBytes, r.Queues, r.Token)
	want := "[10.244.0.2/32 fd00:10:244::2/128] [169.254.1.1 fe80::1] 02:00:00:00:00:01 02:76:73:77:00:01 1450 2 t0"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got = fmt.Sprint(r.Dns.GetNameservers(), r.Dns.GetDomain(), r.Dns.GetSearch(), r.Dns.GetOptions())
	want = "[10.96.0.10 fd00:10:96::a]" + "default.svc.cluster.local" + "[default.svc.cluster.local svc.cluster.local cluster.local] [ndots:5]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if a := b.attachments.added; a.ContainerID != "c1" || a.Pod.UID != "u1" || a.Pod.Labels["app"] != "web" || a.Netns != "/run/netns/c1" {
		t.Errorf("asked for %+v", a)
	}
}

func TestASingleFamilyGetsItsOwnGateway(t *testing.T) {
	b := newBench(t)
	b.attachments.reply.Addrs = b.attachments.reply.Addrs[1:]
	r, err := b.AddPod(t.Context(), &apiv1.AddPodRequest{})
	if err != nil || !slices.Equal(r.Gateways, []string{"fe80::1"}) || !slices.Equal(r.GetDns().GetNameservers(), []string{"fd00:10:96::a"}) {
		t.Errorf("gateways %v, DNS %v, err %v", r.GetGateways(), r.GetDns(), err)
	}
}

// TestErrorsBecomeTheCodesOfTheProto follows the comments of vswitch.proto.
func TestErrorsBecomeTheCodesOfTheProto(t *testing.T) {
	tests := []struct {
		err  error
		want codes.Code
	}{
		{&attach.InvalidError{Field: "ifname", Value: "a/b", Want: "a name"}, codes.InvalidArgument},
		{fmt.Errorf("x: %w", attach.ErrExists), codes.AlreadyExists},
		{fmt.Errorf("x: %w", attach.ErrNotFound), codes.NotFound},
		{fmt.Errorf("x: %w", attach.ErrNotReady), codes.FailedPrecondition},
		{fmt.Errorf("x: %w", ipam.ErrExhausted), codes.ResourceExhausted},
		{&os.PathError{Op: "write", Path: "leases.json", Err: syscall.ENOSPC}, codes.ResourceExhausted},
		{fmt.Errorf("x: %w", syscall.EMFILE), codes.ResourceExhausted},
		{fmt.Errorf("x: %w", control.ErrUnavailable), codes.Unavailable},
		{&control.ConflictError{What: "clusterIP 10.96.0.10", Holder: "Service kube-system/dns"}, codes.FailedPrecondition},
		{&control.InvalidError{Reason: "bad"}, codes.InvalidArgument},
		{errors.New("out of order"), codes.Internal},
	}
	b := newBench(t)
	for _, tt := range tests {
		b.attachments.err = tt.err
		_, err := b.AddPod(t.Context(), &apiv1.AddPodRequest{})
		wantCode(t, err, tt.want, tt.err.Error())
	}
	b.attachments.err = attach.ErrNotFound
	_, err := b.CheckPod(t.Context(), &apiv1.CheckPodRequest{})
	wantCode(t, err, codes.NotFound)
}

func TestOnlyListAttachmentsGivesTokens(t *testing.T) {
	b := newBench(t)
	check, err := b.CheckPod(t.Context(), &apiv1.CheckPodRequest{})
	if err != nil || check.Attachment.Token != "" || !check.Attachment.Attached {
		t.Errorf("check %v, err %v", check, err)
	}
	all, err := b.ListAttachments(t.Context(), &apiv1.ListAttachmentsRequest{})
	if err != nil || len(all.Attachments) != 2 || all.Attachments[1].Token != "secret" || all.Attachments[1].Attached {
		t.Errorf("list %v, err %v", all, err)
	}
	detached, err := b.ListAttachments(t.Context(), &apiv1.ListAttachmentsRequest{DetachedOnly: true})
	if err != nil || len(detached.Attachments) != 1 {
		t.Errorf("detached %v, err %v", detached, err)
	}
}

func TestGC(t *testing.T) {
	b := newBench(t)
	_, err := b.Client.GC(t.Context(), &apiv1.GCRequest{})
	wantCode(t, err, codes.InvalidArgument, "network")
	r, err := b.Client.GC(t.Context(), &apiv1.GCRequest{Network: "vswitch", Valid: []*apiv1.AttachmentKey{{ContainerId: "c9", Ifname: "eth0"}}})
	if err != nil || len(r.Removed) != 1 || len(r.Failed) != 1 || r.Failed[0].Error != "disk full" {
		t.Errorf("reply %v, err %v", r, err)
	}
	if len(b.attachments.valid) != 1 || b.attachments.valid[0].ContainerID != "c9" {
		t.Errorf("valid %v", b.attachments.valid)
	}
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	if r, err := b.Status(t.Context(), &apiv1.StatusRequest{}); err != nil || !r.Ready {
		t.Errorf("%v, %v", r, err)
	}
	b.ready = Readiness{Reason: "no pod CIDR yet", Limited: true}
	if r, err := b.Status(t.Context(), &apiv1.StatusRequest{}); err != nil || r.Ready || r.Reason != "no pod CIDR yet" || !r.LimitedConnectivity {
		t.Errorf("%v, %v", r, err)
	}
}

func TestVersionSaysWhyAnUpgradeWasRefused(t *testing.T) {
	b := newBench(t)
	b.refused = "it is Monday"
	want := func(refused string) {
		t.Helper()
		if v, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil || v.GetUpgradeRefused() != refused {
			t.Errorf("%v %v, want the refusal %q", v, err, refused)
		}
	}
	want("") // of nothing that was asked for here
	if r, err := b.Upgrade(t.Context(), &apiv1.UpgradeRequest{}); err != nil || r.GetPid() != uint32(os.Getpid()) {
		t.Fatalf("%v %v, want this process", r, err)
	}
	want("it is Monday")
}

const service = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"selector":{"app":"web"},"ports":[{"port":80}]}}`

func TestApplySaysWhatChanged(t *testing.T) {
	b := newBench(t)
	for _, want := range []apiv1.Change{apiv1.Change_CHANGE_CREATED, apiv1.Change_CHANGE_CONFIGURED} {
		r, err := b.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(service)}})
		if err != nil {
			t.Fatal(err)
		}
		got := r.Results[0]
		if got.Kind != "Service" || got.Namespace != "default" || got.Name != "web" || got.Change != want || !json.Valid(got.Document) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestApplyRefusesAllOfABadInput(t *testing.T) {
	b := newBench(t)
	for name, docs := range map[string][]string{
		"nothing":              {},
		"a second that is bad": {service, `{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"port":[]}}`},
		"not JSON":             {`{"kind"`},
		"a pod":                {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`},
		"no kind":              {`{}`},
		"zero bytes":           {""},
	} {
		r := &apiv1.ApplyRequest{}
		for _, d := range docs {
			r.Documents = append(r.Documents, []byte(d))
		}
		_, err := b.Apply(t.Context(), r)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v, want InvalidArgument", name, err)
		}
		if len(b.objects.held) != 0 {
			t.Errorf("%s: left %v behind", name, b.objects.held)
		}
	}
}

func TestApplyWithoutStore(t *testing.T) {
	b := newBench(t)
	b.objects.err = control.ErrUnavailable
	_, err := b.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(service)}})
	wantCode(t, err, codes.Unavailable)
}

func TestDelete(t *testing.T) {
	b := newBench(t)
	if _, err := b.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(service)}}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		r    *apiv1.DeleteRequest
		want codes.Code
	}{
		{&apiv1.DeleteRequest{Kind: "widget", Name: "web"}, codes.InvalidArgument},
		{&apiv1.DeleteRequest{Kind: "service"}, codes.InvalidArgument},
		{&apiv1.DeleteRequest{Kind: "pod", Name: "web"}, codes.InvalidArgument},
		{&apiv1.DeleteRequest{Kind: "service", Namespace: "other", Name: "web"}, codes.NotFound},
		{&apiv1.DeleteRequest{Kind: "Services", Name: "web"}, codes.OK},
		{&apiv1.DeleteRequest{Kind: "service", Name: "web"}, codes.NotFound},
	} {
		if _, err := b.Delete(t.Context(), tt.r); status.Code(err) != tt.want {
			t.Errorf("%v: got %v, want %v", tt.r, err, tt.want)
		}
	}
}

func TestGet(t *testing.T) {
	b := newBench(t)
	b.rows = []any{map[string]any{"name": "a"}, map[string]any{"name": "b"}}
	var names []string
	for row, err := range b.Client.Rows(t.Context(), "nodes") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, string(row))
	}
	if len(names) != 2 || names[1] != `{"name":"b"}` {
		t.Errorf("%q", names)
	}
	b.rowsErr = &UnknownKindError{"widgets", "nodes or pods"}
	for _, err := range b.Client.Rows(t.Context(), "widgets") {
		wantCode(t, err, codes.InvalidArgument, `"widgets"`, "nodes or pods")
	}
}

// TestGetOfALongList sends more than any message may have, of which neither side holds more
// than a few replies: rows are made no sooner than they are sent.
func TestGetOfALongList(t *testing.T) {
	b := newBench(t)
	const rows, length = 3 << 10, 64 << 10 // 192 MiB
	row := strings.Repeat("x", length)
	var made atomic.Int64
	b.server.cfg.Rows = func(context.Context, string) (iter.Seq[any], error) {
		return func(yield func(any) bool) {
			for range rows {
				made.Add(1)
				if !yield(row) {
					return
				}
			}
		}, nil
	}
	got := int64(0)
	for text, err := range b.Client.Rows(t.Context(), "flows") {
		if err != nil {
			t.Fatal(err)
		}
		if got++; len(text) != length+2 {
			t.Fatalf("row %d has %d bytes", got, len(text))
		}
		if ahead := made.Load() - got; ahead > 8*maxBatchBytes/length {
			t.Fatalf("row %d: %d rows are made that nobody has taken", got, ahead)
		}
	}
	if got != rows {
		t.Errorf("%d rows of %d", got, rows)
	}
	// Who has seen enough ends it.
	for range b.Client.Rows(t.Context(), "flows") {
		break
	}
}

// TestAShortListIsOneReply is what clients rely on that know Get as a call with one answer.
func TestAShortListIsOneReply(t *testing.T) {
	b := newBench(t)
	for _, rows := range [][]any{nil, {1}, {1, 2, 3}} {
		b.rows = rows
		stream, err := b.Get(t.Context(), &apiv1.GetRequest{Kind: "nodes"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil || len(r.Rows) != len(rows) {
			t.Errorf("%d rows: %v, %v", len(rows), r, err)
		}
		if r, err = stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("%d rows: and then %v, %v", len(rows), r, err)
		}
	}
}

func TestAPanicIsAnErrorOfItsCallAlone(t *testing.T) {
	b := newBench(t)
	b.server.cfg.Rows = func(context.Context, string) (iter.Seq[any], error) { panic("bug") }
	for _, err := range b.Client.Rows(t.Context(), "nodes") {
		wantCode(t, err, codes.Internal, "bug")
	}
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Error(err)
	}
}

// TestAConnectionThatIsNotGRPC sends noise and wants the server to live on.
func TestAConnectionThatIsNotGRPC(t *testing.T) {
	b := newBench(t)
	conn, err := net.Dial("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n\x00\xff")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := b.Version(t.Context(), &apiv1.VersionRequest{}); err != nil {
		t.Error(err)
	}
}
