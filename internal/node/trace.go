package node

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/attach"
	"vswitch/internal/nodeapi"
	"vswitch/internal/wire"
	"vswitch/vswitch"
	"vswitch/vswitch/drop"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/frame"
	"vswitch/vswitch/gateway"
)

// tracer tells what would become of a pod's packet. The switch and the gateway say
// what they would do (vswitch.Switch.Trace, gateway.Look); here it is put in words,
// with the names of the objects behind it.
type tracer struct {
	node        string
	ports       *countedPorts
	attachments *attach.Manager
	fib         *fib.Table
	dataplane   *dataplane
	objects     *control.Controller
	gateway     atomic.Pointer[gateway.Gateway] // it comes later
}

// traceSourcePort is beyond what Linux gives by itself (ip_local_port_range, up to
// 60,999): a connection of the pod's own would be another packet's.
const traceSourcePort = 61000

// Trace implements nodeapi.Config.Trace.
func (t *tracer) Trace(q nodeapi.TraceQuery) (*apiv1.TraceReply, error) {
	sw, g := t.ports.sw.Load(), t.gateway.Load()
	if sw == nil || g == nil {
		return nil, fmt.Errorf("%w: it does not forward yet", attach.ErrNotReady)
	}
	pod, err := t.pod(q.Namespace, q.Name)
	if err != nil {
		return nil, err
	}
	opening, err := openingOf(pod, &q)
	if err != nil {
		return nil, err
	}
	look := &looker{Gateway: g}
	traced, err := sw.Trace(pod.Port, frameOf(pod, opening), look)
	if err != nil {
		return nil, err
	}
	s := &story{tracer: t, pod: pod, opening: opening, traced: traced, look: look, gateway: g}
	s.tell()
	return &s.TraceReply, nil
}

// pod finds a pod's attachment, which must be open.
func (t *tracer) pod(namespace, name string) (*attach.Attachment, error) {
	for _, a := range t.attachments.List() {
		if a.Pod.Namespace != namespace || a.Pod.Name != name {
			continue
		}
		if a.State != attach.Attached {
			return nil, fmt.Errorf("%w: pod %s/%s is %v; vswitch-cni reattach gives the daemon its queues", attach.ErrNotReady, namespace, name, a.State)
		}
		return &a, nil
	}
	return nil, fmt.Errorf("pod %s/%s is not on node %s; vswitch get pods says where it is: %w", namespace, name, t.node, attach.ErrNotFound)
}

func openingOf(pod *attach.Attachment, q *nodeapi.TraceQuery) (*wire.Opening, error) {
	o := &wire.Opening{Dst: wire.AddrFrom(q.To), Proto: q.Protocol, SrcPort: q.SourcePort, DstPort: q.Port}
	if o.SrcPort == 0 {
		o.SrcPort = traceSourcePort
	}
	if o.Proto == wire.ProtoICMP && q.To.Is6() {
		o.Proto = wire.ProtoICMPv6
	}
	for _, a := range pod.Addrs {
		if a.Is4() == q.To.Is4() {
			o.Src = wire.AddrFrom(a)
			return o, nil
		}
	}
	return nil, &attach.InvalidError{Field: "to", Value: q.To.String(), Want: "an address of a family that the pod has"}
}

// frameOf is the opening as the pod's kernel would send it.
func frameOf(pod *attach.Attachment, o *wire.Opening) *frame.Frame {
	f := frame.NewSized(frame.EthernetBytes + wire.MaxOpeningBytes)
	b := f.Space()
	copy(b, vswitch.GatewayMAC[:])
	copy(b[6:], pod.MAC[:])
	b[12], b[13] = 0x08, 0x00
	if !o.Src.Is4() {
		b[12], b[13] = 0x86, 0xdd
	}
	f.SetLen(frame.EthernetBytes + wire.PutOpening(b[frame.EthernetBytes:], o))
	return f
}

// looker answers the switch as the gateway would, and keeps the answer.
type looker struct {
	*gateway.Gateway
	asked bool
	gateway.Look
}

// Pick implements vswitch.Services.
func (l *looker) Pick(k *flow.Key, _ *wire.Headers) (flow.Endpoint, drop.Reason) {
	l.asked, l.Look = true, l.Gateway.Look(k)
	return l.Endpoint, l.Reason
}

// story puts a trace in words, a step for each decision.
type story struct {
	*tracer
	apiv1.TraceReply
	pod     *attach.Attachment
	opening *wire.Opening
	traced  *vswitch.Traced
	look    *looker
	gateway *gateway.Gateway
}

func (s *story) step(stage, object, format string, args ...any) {
	s.Steps = append(s.Steps, &apiv1.TraceStep{Stage: stage, Object: object, Text: fmt.Sprintf(format, args...)})
}

func (s *story) end(verdict string, reason drop.Reason, pod, node, format string, args ...any) {
	s.Outcome = &apiv1.TraceOutcome{Verdict: verdict, Pod: pod, Node: node, Text: fmt.Sprintf(format, args...)}
	if reason != drop.None {
		s.Outcome.Reason = reason.String()
	}
}

func (s *story) tell() {
	o := s.opening
	s.step("source", "Pod "+podName(s.pod), "%s from %s enters by %s", openingName(o.Proto), place(o.Src, o.SrcPort), s.pod.Ifname)
	if len(s.traced.Sent) == 0 && isGuard(s.reason()) {
		s.step("guards", "", "the packet is one that no pod may send: %v", s.reason())
		s.end("dropped", s.reason(), "", "", "dropped under reason %v", s.reason())
		return
	}
	s.step("guards", "", "the source is the pod's own")
	s.tellFlow()
	s.tellRoute(o.Dst)
	s.tellService()
	s.tellRewrite()
	s.tellOutcome()
}

func openingName(proto uint8) string {
	switch proto {
	case wire.ProtoTCP:
		return "a TCP SYN"
	case wire.ProtoUDP:
		return "a UDP datagram"
	case wire.ProtoSCTP:
		return "an SCTP INIT"
	}
	return "an echo request"
}

// isGuard: these are judged by the packet alone (vswitch/guard.go).
func isGuard(r drop.Reason) bool { return r >= drop.SpoofedMAC && r <= drop.NotForUs }

// reason is the one that the frame would be counted under, or None.
func (s *story) reason() drop.Reason {
	if len(s.traced.Drops) == 0 {
		return drop.None
	}
	return s.traced.Drops[0]
}

// known reports whether the packet belongs to a connection that there is, rather
// than begin one.
func (s *story) known() bool {
	b, a := s.traced.Before, s.traced.After
	return b != nil && a != nil && b.Spec == a.Spec && a.Frames[s.traced.Direction] > b.Frames[s.traced.Direction]
}

func (s *story) tellFlow() {
	switch b := s.traced.Before; {
	case s.known():
		s.step("flow", "", "a connection is known by these addresses and ports (%v, %d s old): the packet goes its way", b.State, b.AgeTicks/ticksPerSecond)
	case b != nil:
		s.step("flow", "", "a connection with these addresses and ports has ended (%v): a new one begins", b.State)
	default:
		s.step("flow", "", "no connection is known by these addresses and ports: this is the first packet of one")
	}
}

// tellRoute says what the FIB has for an address.
func (s *story) tellRoute(dst wire.Addr) {
	prefix, hop := s.fib.Route(&dst)
	if !prefix.IsValid() {
		prefix = netip.PrefixFrom(dst.Netip(), 0).Masked()
	}
	object, text := "", ""
	switch hop.Kind {
	case fib.Port:
		name, _ := s.podAt(dst.Netip())
		object, text = "Pod "+name, "a pod of this node"
	case fib.Peer:
		node := s.dataplane.nodeOf(hop.Index)
		object, text = "Node "+node, "behind the tunnel to node "+node
	case fib.VIP:
		text = "addresses of services"
	case fib.Router:
		text = "this node's own address for pods"
	case fib.Node:
		text = "a node's address"
	case fib.Egress:
		text = "outside the cluster"
	case fib.Unreachable:
		text = "pods of the cluster, and no node has this one"
	default:
		text = "no route"
	}
	s.step("route", object, "%v is in %v: %s", dst, prefix, text)
}

// tellService says which service the first packet of a connection was for, and
// whom it picked.
func (s *story) tellService() {
	l := s.look
	if !l.asked || l.Reason == drop.NoService && s.fib.Lookup(&s.opening.Dst).Kind != fib.VIP {
		return
	}
	object := "Service " + l.Service.String()
	switch {
	case l.DNS:
		s.step("service", "", "the node's own DNS server answers there")
	case l.Reason == drop.NoService:
		s.step("service", "", "no service has port %d of that address over %s", s.opening.DstPort, protocolName(s.opening.Proto))
	case l.Reason == drop.SourceRange:
		s.step("service", object, "its loadBalancerSourceRanges leave the pod out")
	case l.Reason != drop.None:
		s.step("service", object, "none of its endpoints takes new connections")
	case l.Proxy:
		s.step("service", object, "in proxy mode: the node ends the connection and makes one to an endpoint of its own, of %d", len(l.Choices))
	case l.Kept:
		s.step("service", object, "remembers this client (sessionAffinity) at %s", s.endpoint(l.Endpoint))
	case len(l.Choices) == 1:
		s.step("service", object, "sends it to its one endpoint, %s", s.endpoint(l.Endpoint))
	default:
		s.step("service", object, "draws one of its %d endpoints; this time %s", len(l.Choices), s.endpoint(l.Endpoint))
	}
}

func (s *story) endpoint(e flow.Endpoint) string {
	text := place(e.Addr, e.Port)
	if name, node := s.podAt(e.Addr.Netip()); name != "" {
		text += fmt.Sprintf(" (pod %s on node %s)", name, node)
	}
	return text
}

// tellRewrite says what the connection makes of the packet's addresses, and where
// that leads.
func (s *story) tellRewrite() {
	a := s.traced.After
	if a == nil || a.Reply == a.Orig.Reverse() {
		return
	}
	key, to := a.Orig, a.Reply.Reverse()
	if s.traced.Direction == flow.Reply {
		key, to = a.Reply, a.Orig.Reverse()
	}
	var changes []string
	if key.Dst != to.Dst || key.DstPort != to.DstPort {
		changes = append(changes, "the destination becomes "+place(to.Dst, to.DstPort))
	}
	if key.Src != to.Src {
		changes = append(changes, "the source becomes "+place(to.Src, to.SrcPort)+", as a pod gets no answer from itself")
	} else if key.SrcPort != to.SrcPort {
		changes = append(changes, fmt.Sprintf("the source port becomes %d, as answers to %d could be another connection's", to.SrcPort, key.SrcPort))
	}
	s.step("rewrite", "", "%s", strings.Join(changes, "; "))
	if key.Dst != to.Dst {
		s.tellRoute(to.Dst)
	}
}

func (s *story) tellOutcome() {
	if len(s.traced.Sent) == 0 {
		s.end("dropped", s.reason(), "", "", "dropped under reason %v, and the pod is not told", s.reason())
		return
	}
	out := &s.traced.Sent[0]
	h := &out.Headers
	switch {
	case out.Port == s.pod.Port && s.reason() != drop.None:
		s.end("refused", s.reason(), "", s.node, "refused because of %v: the pod gets %s", s.reason(), refusal(h))
	case out.Port == s.pod.Port && s.traced.After == nil:
		s.end("answered", drop.None, "", s.node, "node %s itself answers", s.node)
	case out.Kind == vswitch.PortPod:
		name, node := s.podAt(h.Dst.Netip())
		s.end("delivered", drop.None, name, node, "delivered to pod %s on node %s", name, node)
	case out.Kind == vswitch.PortTunnel:
		s.tellTunnel(out)
	default:
		s.tellGateway(h)
	}
}

func refusal(h *wire.Headers) string {
	if h.Proto == wire.ProtoTCP {
		return "a reset"
	}
	return fmt.Sprintf("an ICMP error, type %d code %d", h.ICMPType, h.ICMPCode)
}

func (s *story) tellTunnel(out *vswitch.TracedFrame) {
	node := s.dataplane.nodeOf(out.Peer)
	s.step("tunnel", "Node "+node, "VXLAN to %s, packets of up to %d bytes", s.dataplane.underlayOf(out.Peer), out.MTUBytes)
	name, at := s.podAt(out.Headers.Dst.Netip())
	if name == "" {
		s.end("delivered", drop.None, "", node, "sent to node %s; no pod is known here at %v, so that node will refuse it", node, out.Headers.Dst)
		return
	}
	live := ""
	if !s.objects.Live(at) {
		live = ", which is not ready"
	}
	s.end("delivered", drop.None, name, at, "delivered to pod %s on node %s%s", name, at, live)
}

// tellGateway says what the gateway makes of what the switch gives it.
func (s *story) tellGateway(h *wire.Headers) {
	if a := s.traced.After; a != nil && a.Flags&flow.ToGateway != 0 {
		s.end("answered", drop.None, "", s.node, "node %s itself ends the connection", s.node)
		return
	}
	to, r := s.gateway.LookOutside(h)
	if r != drop.None {
		s.step("gateway", "", "pods may not go to %s over %s by this node", place(h.Dst, h.DstPort), protocolName(h.Proto))
		s.end("refused", r, "", s.node, "refused because of %v: the pod gets an ICMP error", r)
		return
	}
	s.step("gateway", "", "egress allows it: a socket of the host sends to %v", to)
	s.end("outside", drop.None, "", s.node, "leaves by a socket of node %s for %s", s.node, place(wire.AddrFrom(to), h.DstPort))
}

// podAt is the pod that has an address, and its node; "" if none is known.
func (t *tracer) podAt(addr netip.Addr) (name, node string) {
	for _, a := range t.attachments.List() {
		for _, own := range a.Addrs {
			if own == addr {
				return podName(&a), t.node
			}
		}
	}
	text := addr.String()
	for _, o := range t.objects.List(control.KindPod) {
		p := o.(*corev1.Pod)
		for _, ip := range p.Status.PodIPs {
			if ip.IP == text {
				return p.Namespace + "/" + p.Name, p.Spec.NodeName
			}
		}
	}
	return "", ""
}

func podName(a *attach.Attachment) string { return a.Pod.Namespace + "/" + a.Pod.Name }

// underlayOf is where a member is reached, for people.
func (d *dataplane) underlayOf(id uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.members[d.ids[id]]; p != nil {
		return p.Underlay.String()
	}
	return "a member that has gone"
}
