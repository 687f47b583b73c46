package nodeapi

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
	"vswitch/control/ipam"
	"vswitch/internal/attach"
)

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
