package cnitest

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "vswitch/control/api/v1"
)

var _ apiv1.NodeServer = (*Daemon)(nil)

// AddPod implements apiv1.NodeServer.
func (d *Daemon) AddPod(_ context.Context, r *apiv1.AddPodRequest) (*apiv1.AddPodReply, error) {
	k := r.GetKey()
	if k.GetNetwork() == "" || k.GetContainerId() == "" || k.GetIfname() == "" || r.GetNetns() == "" || r.GetPod().GetName() == "" {
		return nil, status.Errorf(codes.InvalidArgument, "a field is missing: %v", r)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pods[keyString(k)] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "container %s has %s already", k.GetContainerId(), k.GetIfname())
	}
	slot, err := d.lease()
	if err != nil {
		return nil, err
	}
	p := &record{slot: slot, Attachment: &apiv1.Attachment{
		Key:      k,
		Netns:    r.GetNetns(),
		Pod:      r.GetPod(),
		Ips:      []string{address("10.244.1.0", slot)},
		Mac:      macOf(slot),
		MtuBytes: d.config.MTUBytes,
		Queues:   d.config.Queues,
		Plain:    d.config.Plain,
		Token:    newToken(),
	}}
	if !d.config.NoIPv6 {
		p.Ips = append(p.Ips, address("fd00:10:244:1::", slot))
	}
	d.pods[keyString(k)] = p
	return &apiv1.AddPodReply{
		Ips:           p.Ips,
		Gateways:      []string{Gateway4, Gateway6},
		Mac:           p.Mac,
		GatewayMac:    GatewayMAC,
		MtuBytes:      p.MtuBytes,
		Queues:        p.Queues,
		Token:         p.Token,
		GsoMaxBytes:   d.config.GSOMaxBytes,
		TxQueueFrames: d.config.TxQueueFrames,
		Plain:         p.Plain,
	}, nil
}

// DelPod implements apiv1.NodeServer.
func (d *Daemon) DelPod(_ context.Context, r *apiv1.DelPodRequest) (*apiv1.DelPodReply, error) {
	d.remove(r.GetKey())
	return &apiv1.DelPodReply{}, nil
}

// CheckPod implements apiv1.NodeServer.
func (d *Daemon) CheckPod(_ context.Context, r *apiv1.CheckPodRequest) (*apiv1.CheckPodReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.pods[keyString(r.GetKey())]
	if p == nil {
		return nil, status.Error(codes.NotFound, "no such attachment")
	}
	a := proto.CloneOf(p.Attachment)
	a.Token = ""
	return &apiv1.CheckPodReply{Attachment: a, Gateways: []string{Gateway4, Gateway6}, GatewayMac: GatewayMAC}, nil
}

// Status implements apiv1.NodeServer: ready while an address is free.
func (d *Daemon) Status(context.Context, *apiv1.StatusRequest) (*apiv1.StatusReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.notReady != "" {
		return &apiv1.StatusReply{Reason: d.notReady}, nil
	}
	if _, err := d.lease(); err != nil {
		return &apiv1.StatusReply{Reason: status.Convert(err).Message()}, nil
	}
	return &apiv1.StatusReply{Ready: true}, nil
}

// GC implements apiv1.NodeServer. Fail("GC:<container id>", err) makes one
// attachment's removal fail.
func (d *Daemon) GC(_ context.Context, r *apiv1.GCRequest) (*apiv1.GCReply, error) {
	valid := map[string]bool{}
	for _, k := range r.GetValid() {
		valid[k.GetContainerId()+" "+k.GetIfname()] = true
	}
	reply := &apiv1.GCReply{}
	for _, a := range d.Attachments() {
		k := a.GetKey()
		if k.GetNetwork() != r.GetNetwork() || valid[k.GetContainerId()+" "+k.GetIfname()] {
			continue
		}
		if err := d.failure("GC:" + k.GetContainerId()); err != nil {
			reply.Failed = append(reply.Failed, &apiv1.GCFailure{Key: k, Error: err.Error()})
			continue
		}
		reply.Removed = append(reply.Removed, d.remove(k))
	}
	return reply, nil
}

// ListAttachments implements apiv1.NodeServer.
func (d *Daemon) ListAttachments(_ context.Context, r *apiv1.ListAttachmentsRequest) (*apiv1.ListAttachmentsReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	reply := &apiv1.ListAttachmentsReply{}
	for _, p := range d.pods {
		if p.Attached && r.GetDetachedOnly() {
			continue
		}
		p.Token = newToken()
		reply.Attachments = append(reply.Attachments, proto.CloneOf(p.Attachment))
	}
	return reply, nil
}
