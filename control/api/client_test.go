package api_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"vswitch/control/api"
	apiv1 "vswitch/control/api/v1"
)

// node answers as the tests tell it.
type node struct {
	apiv1.UnimplementedNodeServer
	add  func(*apiv1.AddPodRequest) (*apiv1.AddPodReply, error)
	list *apiv1.ListAttachmentsReply
	gc   chan *apiv1.GCRequest // what came
}

func (n *node) AddPod(_ context.Context, r *apiv1.AddPodRequest) (*apiv1.AddPodReply, error) {
	return n.add(r)
}

func (n *node) DelPod(ctx context.Context, _ *apiv1.DelPodRequest) (*apiv1.DelPodReply, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (n *node) ListAttachments(context.Context, *apiv1.ListAttachmentsRequest) (*apiv1.ListAttachmentsReply, error) {
	return n.list, nil
}

func (n *node) GC(_ context.Context, r *apiv1.GCRequest) (*apiv1.GCReply, error) {
	n.gc <- r
	return &apiv1.GCReply{}, nil
}

// serve runs gRPC's own server.
func serve(t *testing.T, n *node) (api.Client, *grpc.Server) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))
	apiv1.RegisterNodeServer(s, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	t.Cleanup(func() { s.Stop(); <-done })
	return api.Client{Socket: socket}, s
}

func TestACallIsWhatGRPCMakesOfIt(t *testing.T) {
	want := &apiv1.AddPodRequest{
		Key: &apiv1.AttachmentKey{Network: "net", ContainerId: "c1", Ifname: "eth0"}, Netns: "/run/netns/c1", Host: true,
		Pod:          &apiv1.Pod{Namespace: "web", Name: "front-0", Uid: "u", Labels: map[string]string{"app": "web", "tier": ""}},
		PortMappings: []*apiv1.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIp: "192.0.2.1"}, {}},
	}
	client, _ := serve(t, &node{add: func(r *apiv1.AddPodRequest) (*apiv1.AddPodReply, error) {
		if !proto.Equal(r, want) {
			t.Errorf("the daemon got %v, want %v", r, want)
		}
		return &apiv1.AddPodReply{
			Ips: []string{"192.0.2.7/32", "2001:db8::7/128"}, Mac: "02:00:00:00:00:01", MtuBytes: 65535, Queues: 1 << 31, Plain: true,
			Dns: &apiv1.Resolver{Search: []string{"", "svc.cluster.local"}},
		}, nil
	}})
	got, err := client.AddPod(t.Context(), &api.AddPodRequest{
		Key: api.AttachmentKey{Network: "net", ContainerID: "c1", Ifname: "eth0"}, Netns: "/run/netns/c1", Host: true,
		Pod:          api.Pod{Namespace: "web", Name: "front-0", UID: "u", Labels: map[string]string{"app": "web", "tier": ""}},
		PortMappings: []api.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "192.0.2.1"}, {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	reply := &api.AddPodReply{
		IPs: []string{"192.0.2.7/32", "2001:db8::7/128"}, MAC: "02:00:00:00:00:01", MTUBytes: 65535, Queues: 1 << 31, Plain: true,
		DNS: api.Resolver{Search: []string{"", "svc.cluster.local"}},
	}
	if !reflect.DeepEqual(got, reply) {
		t.Errorf("the client got %+v, want %+v", got, reply)
	}
}

// Both ways beyond HTTP/2's first windows, 64 KiB.
func TestLongMessagesPass(t *testing.T) {
	const many = 20_000
	n := &node{list: &apiv1.ListAttachmentsReply{}, gc: make(chan *apiv1.GCRequest, 1)}
	request := &api.GCRequest{Network: "net"}
	for range many {
		n.list.Attachments = append(n.list.Attachments, &apiv1.Attachment{Netns: strings.Repeat("n", 100)})
		request.Valid = append(request.Valid, api.AttachmentKey{ContainerID: strings.Repeat("c", 64)})
	}
	client, _ := serve(t, n)
	if reply, err := client.ListAttachments(t.Context(), &api.ListAttachmentsRequest{}); err != nil || len(reply.Attachments) != many {
		t.Errorf("%v; want a list of %d", err, many)
	}
	if _, err := client.GC(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if got := <-n.gc; len(got.GetValid()) != many {
		t.Errorf("the daemon got %d, want %d", len(got.GetValid()), many)
	}
}

func TestARefusalHasItsCodeAndMessage(t *testing.T) {
	const says = "no address is free: 100 % of 192.0.2.0/24 — ß\n"
	client, _ := serve(t, &node{add: func(*apiv1.AddPodRequest) (*apiv1.AddPodReply, error) {
		return nil, status.Error(codes.ResourceExhausted, says)
	}})
	_, err := client.AddPod(t.Context(), &api.AddPodRequest{})
	if api.CodeOf(err) != api.ResourceExhausted || err.Error() != says {
		t.Errorf("%v, want ResourceExhausted: %s", err, says)
	}
	if _, err := client.Status(t.Context(), &api.StatusRequest{}); err == nil || api.CodeOf(err) != api.Code(codes.Unimplemented) {
		t.Errorf("a call that the daemon doesn't know: %v", err)
	}
}

func TestWithoutAnAnswerTheCodeSaysSo(t *testing.T) {
	client, server := serve(t, &node{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.DelPod(ctx, &api.DelPodRequest{}); api.CodeOf(err) != api.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a daemon that doesn't answer: %v", err)
	}
	failed := make(chan error)
	go func() {
		_, err := client.DelPod(t.Context(), &api.DelPodRequest{})
		failed <- err
	}()
	time.AfterFunc(50*time.Millisecond, server.Stop)
	if err := <-failed; api.CodeOf(err) != api.Unavailable && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a daemon that ends: %v", err)
	}
	if _, err := client.DelPod(t.Context(), &api.DelPodRequest{}); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no daemon: %v, want the system call's error", err)
	}
}

// What listens may be anything.
func TestSomethingElseAtTheSocketIsAnError(t *testing.T) {
	for _, says := range []string{"", "HTTP/1.1 400 Bad Request\r\n\r\n", "\xff\xff\xff\x00\x00\x00\x00\x00\x00", "\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff"} {
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				c.Read(make([]byte, 4096))
				c.Write([]byte(says))
				c.Close()
			}
		}()
		if _, err := (api.Client{Socket: socket}).Status(t.Context(), &api.StatusRequest{}); api.CodeOf(err) != api.Unavailable {
			t.Errorf("%q: %v, want Unavailable", says, err)
		}
		l.Close()
	}
}
