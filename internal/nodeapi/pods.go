package nodeapi

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/attach"
)

// txQueueFrames is the pod's send queue, which with the TAP's is the only cushion
// while the daemon is away. 1,000 is Linux's default for Ethernet; a TAP's is 500.
const txQueueFrames = 1000

// AddPod implements apiv1.NodeServer.
func (s *Server) AddPod(_ context.Context, r *apiv1.AddPodRequest) (*apiv1.AddPodReply, error) {
	ports, err := portsOf(r.GetPortMappings())
	if err != nil {
		return nil, statusOf(err)
	}
	a, err := s.cfg.Attachments.Add(attach.Request{
		Key: keyOf(r.GetKey()), Netns: r.GetNetns(),
		Pod: attach.Pod{
			Namespace: r.GetPod().GetNamespace(), Name: r.GetPod().GetName(),
			UID: r.GetPod().GetUid(), Labels: r.GetPod().GetLabels(),
		},
		Ports: ports, Host: r.GetHost(),
	})
	if err != nil {
		return nil, statusOf(err)
	}
	return &apiv1.AddPodReply{
		Ips: hostPrefixes(a.Addrs), Gateways: s.gateways(a.Addrs),
		Mac: a.MAC.String(), GatewayMac: s.cfg.GatewayMAC,
		MtuBytes: uint32(a.MTUBytes), Queues: uint32(a.Queues), Token: a.Token,
		TxQueueFrames: txQueueFrames, Dns: s.resolver(a.Pod.Namespace, a.Addrs), Routes: s.routes(&a),
	}, nil
}

// resolver is how a pod in namespace finds names at the node's own server, as
// Kubernetes writes it for its pods (dnsPolicy ClusterFirst).
func (s *Server) resolver(namespace string, addrs []netip.Addr) *apiv1.Resolver {
	servers := ofTheirFamilies(s.cfg.DNSAddrs, addrs)
	if len(servers) == 0 {
		return nil
	}
	services := "svc." + s.cfg.DNSDomain
	return &apiv1.Resolver{
		Nameservers: servers, Domain: namespace + "." + services,
		Search: []string{namespace + "." + services, services, s.cfg.DNSDomain}, Options: []string{"ndots:5"},
	}
}

// DelPod implements apiv1.NodeServer.
func (s *Server) DelPod(_ context.Context, r *apiv1.DelPodRequest) (*apiv1.DelPodReply, error) {
	if err := s.cfg.Attachments.Delete(keyOf(r.GetKey())); err != nil {
		return nil, statusOf(err)
	}
	return &apiv1.DelPodReply{}, nil
}

// CheckPod implements apiv1.NodeServer.
func (s *Server) CheckPod(_ context.Context, r *apiv1.CheckPodRequest) (*apiv1.CheckPodReply, error) {
	a, err := s.cfg.Attachments.Get(keyOf(r.GetKey()))
	if err != nil {
		return nil, statusOf(err)
	}
	return &apiv1.CheckPodReply{
		Attachment: wireAttachment(&a), Gateways: s.gateways(a.Addrs), GatewayMac: s.cfg.GatewayMAC, Routes: s.routes(&a),
	}, nil
}

// GC implements apiv1.NodeServer.
func (s *Server) GC(_ context.Context, r *apiv1.GCRequest) (*apiv1.GCReply, error) {
	if r.GetNetwork() == "" {
		return nil, statusOf(&attach.InvalidError{Field: "network", Value: "", Want: "the network whose attachments are judged"})
	}
	if r.GetNetwork() == attach.HostNetwork {
		return nil, statusOf(&attach.InvalidError{Field: "network", Value: r.GetNetwork(), Want: "a network of pods: hosts' attachments are theirs to remove (vswitch host detach)"})
	}
	var valid []attach.Key
	for _, k := range r.GetValid() {
		valid = append(valid, keyOf(k))
	}
	removed, failed := s.cfg.Attachments.GC(r.GetNetwork(), valid)
	reply := &apiv1.GCReply{}
	for i := range removed {
		reply.Removed = append(reply.Removed, wireAttachment(&removed[i]))
	}
	for _, f := range failed {
		reply.Failed = append(reply.Failed, &apiv1.GCFailure{Key: wireKey(f.Key), Error: f.Err.Error()})
	}
	return reply, nil
}

// ListAttachments implements apiv1.NodeServer.
func (s *Server) ListAttachments(_ context.Context, r *apiv1.ListAttachmentsRequest) (*apiv1.ListAttachmentsReply, error) {
	list := s.cfg.Attachments.List()
	if r.GetDetachedOnly() {
		var err error
		if list, err = s.cfg.Attachments.Lost(); err != nil {
			return nil, statusOf(err)
		}
	}
	reply := &apiv1.ListAttachmentsReply{}
	for _, a := range list {
		w := wireAttachment(&a)
		w.Token = a.Token
		reply.Attachments = append(reply.Attachments, w)
	}
	return reply, nil
}

func keyOf(k *apiv1.AttachmentKey) attach.Key {
	return attach.Key{Network: k.GetNetwork(), ContainerID: k.GetContainerId(), Ifname: k.GetIfname()}
}

func wireKey(k attach.Key) *apiv1.AttachmentKey {
	return &apiv1.AttachmentKey{Network: k.Network, ContainerId: k.ContainerID, Ifname: k.Ifname}
}

// wireAttachment leaves the token out: only ListAttachments gives it.
func wireAttachment(a *attach.Attachment) *apiv1.Attachment {
	return &apiv1.Attachment{
		Key: wireKey(a.Key), Netns: a.Netns,
		Pod: &apiv1.Pod{Namespace: a.Pod.Namespace, Name: a.Pod.Name, Uid: a.Pod.UID, Labels: a.Pod.Labels},
		Ips: hostPrefixes(a.Addrs), Mac: a.MAC.String(), MtuBytes: uint32(a.MTUBytes),
		Queues: uint32(a.Queues), Plain: a.Plain, Attached: a.State == attach.Attached,
		PortMappings: wirePorts(a.Ports), Host: a.Host,
	}
}

// hostPrefixes are addresses as an interface gets them: /32 and /128.
func hostPrefixes(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return out
}

// routes are where an attachment's packets go by the gateway, if not everywhere.
func (s *Server) routes(a *attach.Attachment) []string {
	if !a.Host {
		return nil
	}
	var out []string
	for _, p := range s.cfg.HostRoutes {
		out = append(out, p.String())
	}
	return out
}

// gateways are those of the families that addrs have.
func (s *Server) gateways(addrs []netip.Addr) []string {
	return ofTheirFamilies(s.cfg.Gateways, addrs)
}

// ofTheirFamilies are those of candidates that belong to a family addrs have.
func ofTheirFamilies(candidates, addrs []netip.Addr) []string {
	var out []string
	for _, c := range candidates {
		if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4() == c.Is4() }) {
			out = append(out, c.String())
		}
	}
	return out
}

func portsOf(mappings []*apiv1.PortMapping) ([]attach.PortMapping, error) {
	var out []attach.PortMapping
	for _, m := range mappings {
		p := attach.PortMapping{HostPort: uint16(m.GetHostPort()), PodPort: uint16(m.GetContainerPort())}
		if m.GetHostPort() > 65535 || m.GetContainerPort() > 65535 {
			return nil, &attach.InvalidError{Field: "port mapping", Value: fmt.Sprintf("%d to %d", m.GetHostPort(), m.GetContainerPort()), Want: "ports 1 to 65535"}
		}
		switch m.GetProtocol() {
		case "tcp":
			p.Protocol = control.TCP
		case "udp":
			p.Protocol = control.UDP
		default:
			return nil, &attach.InvalidError{Field: "protocol of a port mapping", Value: m.GetProtocol(), Want: "tcp or udp"}
		}
		if m.GetHostIp() != "" {
			a, err := netip.ParseAddr(m.GetHostIp())
			if err != nil {
				return nil, &attach.InvalidError{Field: "host_ip of a port mapping", Value: m.GetHostIp(), Want: "an IP address"}
			}
			p.HostIP = a
		}
		out = append(out, p)
	}
	return out, nil
}

func wirePorts(ports []attach.PortMapping) []*apiv1.PortMapping {
	var out []*apiv1.PortMapping
	for _, p := range ports {
		m := &apiv1.PortMapping{
			HostPort: uint32(p.HostPort), ContainerPort: uint32(p.PodPort), Protocol: strings.ToLower(p.Protocol.String()),
		}
		if p.HostIP.IsValid() {
			m.HostIp = p.HostIP.String()
		}
		out = append(out, m)
	}
	return out
}
