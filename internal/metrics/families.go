package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"vswitch/internal/upkeep"
	"vswitch/vswitch/drop"
)

// emit gives a scrape one value of a family.
type emit func(v float64, labels ...string)

// family is one metric: what it is, and where its values come from.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(*Sources, emit)
}

func counter(name, help string, read func(*Sources, emit), labels ...string) family {
	return family{prometheus.NewDesc("vswitch_"+name, help, labels, nil), prometheus.CounterValue, read}
}

func gauge(name, help string, read func(*Sources, emit), labels ...string) family {
	return family{prometheus.NewDesc("vswitch_"+name, help, labels, nil), prometheus.GaugeValue, read}
}

// one is a family of a single value.
func one[T int | int64 | uint64](value func(*Sources) T) func(*Sources, emit) {
	return func(s *Sources, to emit) { to(float64(value(s))) }
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// families are all metrics that are read when scraped.
var families = []family{
	gauge("build_info", "1; its labels say what runs.", func(s *Sources, to emit) { to(1, s.Version, goVersion()) }, "version", "go_version"),
	gauge("ready", "1 if a pod added now would be connected, else 0.", func(s *Sources, to emit) { to(truth(s.Ready())) }),
	counter("dataplane_restarts_total", "Times that the dataplane was started anew: after a failure, or for an upgrade.",
		one(func(s *Sources) uint64 { return s.Restarts() })),

	counter("drops_total", "Frames that were not forwarded, by the reason (docs/counters.md).", readDrops, "reason"),
	counter("port_ingress_frames_total", "Frames that entered the switch by a port. A frame of segments counts once.",
		perPort(func(p *Port) uint64 { return p.IngressFrames }), "kind", "namespace", "pod"),
	counter("port_ingress_bytes_total", "Bytes of Ethernet frames that entered by a port.",
		perPort(func(p *Port) uint64 { return p.IngressBytes }), "kind", "namespace", "pod"),
	counter("port_egress_frames_total", "Frames that left the switch by a port. A frame of segments counts once.",
		perPort(func(p *Port) uint64 { return p.EgressFrames }), "kind", "namespace", "pod"),
	counter("port_egress_bytes_total", "Bytes of Ethernet frames that left by a port.",
		perPort(func(p *Port) uint64 { return p.EgressBytes }), "kind", "namespace", "pod"),
	counter("port_drops_total", "Frames that entered by a port and were not forwarded.", perPort(portDrops), "kind", "namespace", "pod"),

	gauge("flows", "Connections in the flow table.", one(func(s *Sources) int { n, _ := s.Flows(); return n })),
	gauge("flows_limit", "Connections that the flow table has room for.", one(func(s *Sources) int { _, n := s.Flows(); return n })),

	gauge("tunnel_peers", "Addresses of other nodes, by whether trains of packets are sent there: on, off, or unchecked.",
		byLabel(func(s *Sources) map[string]int { return s.Peers() }), "trains"),
	counter("tunnel_receive_overflow_total", "Datagrams that the kernel dropped for want of receive buffer, or with a bad checksum.",
		one(func(s *Sources) uint64 { return s.Tunnel().ReceiveOverflow })),
	counter("tunnel_receive_errors_total", "Transient errors of receiving from a tunnel socket.",
		one(func(s *Sources) uint64 { return s.Tunnel().ReceiveErrors })),
	counter("tunnel_send_full_total", "Sends that met a full socket buffer.", one(func(s *Sources) uint64 { return s.Tunnel().SendFull })),
	counter("tunnel_too_big_total", "Reports that a datagram did not fit the path to its node.",
		one(func(s *Sources) uint64 { return s.Tunnel().TooBig })),
	counter("tunnel_gso_refused_total", "Destinations to which the kernel refused a train of packets.",
		one(func(s *Sources) uint64 { return s.Tunnel().GSORefused })),

	gauge("attachments", "Interfaces of pods and of the host: attached, pending an ADD, or detached from this daemon.",
		byLabel(func(s *Sources) map[string]int { return s.Attachments() }), "state"),
	gauge("pod_addresses_free", "Pods for which the node has addresses left.", func(s *Sources, to emit) {
		if n, ok := s.FreeAddresses(); ok {
			to(float64(n))
		}
	}),
	gauge("upkeep_problem", "1 for what of the node's own is not as it should be, else 0; vswitch get upkeep says why.",
		perObject(func(o *upkeep.Status) float64 { return truth(o.Problem != "") }), "object"),
	counter("upkeep_found_total", "Times that something of the node's own was found not to be as it should.",
		perObject(func(o *upkeep.Status) float64 { return float64(o.Found) }), "object"),
	counter("upkeep_mended_total", "Times that the daemon put it right.",
		perObject(func(o *upkeep.Status) float64 { return float64(o.Mended) }), "object"),
	gauge("store_reachable", "1 if the control plane's source answers, else 0.", func(s *Sources, to emit) { to(truth(s.Control().Reachable)) }),
	gauge("objects", "Objects of the cluster that this node knows.", func(s *Sources, to emit) {
		for kind, n := range s.Control().Objects {
			to(float64(n), kind.String())
		}
	}, "kind"),
	gauge("object_problems", "Things that objects ask for and this node does not do; vswitch get services says which.",
		one(func(s *Sources) int { return s.Control().Problems })),

	counter("dns_queries_total", "Questions of pods that the node's own DNS server was asked.", one(func(s *Sources) uint64 { return s.DNS().Queries })),
	counter("dns_cluster_queries_total", "Questions of pods about the cluster's own names, which the node answers by itself.", one(func(s *Sources) uint64 { return s.DNS().Own })),
	counter("dns_malformed_queries_total", "Questions of pods that could not be read.", one(func(s *Sources) uint64 { return s.DNS().Malformed })),
	counter("dns_capped_total", "DNS questions and connections refused because too many were under way.",
		one(func(s *Sources) uint64 { return s.Gateway().DNSCapped })),
	gauge("dns_queries_in_progress", "Questions by UDP that are being answered.", one(func(s *Sources) int { return s.Gateway().DNSInProgress })),
	gauge("dns_connections", "Open DNS connections of pods.", one(func(s *Sources) int { return s.Gateway().DNSConnections })),
	counter("dns_forwarded_total", "Questions about other names, by how they were answered: asked upstream, from the cache (hit), together with another's (joined), refused for want of room, or failed.",
		readForwarded, "result"),
	gauge("dns_cache_entries", "Answers of resolvers kept for the next who asks.", one(func(s *Sources) int { return s.DNS().Forwarder.Cached })),

	gauge("gateway_listeners", "Ports of the host that services and pods ask for, by whether they are open.", readListeners, "kind", "state"),
	gauge("gateway_connections", "Connections that end at this node: of pods to the outside (egress), of clients outside, datagram sessions included (ingress), and datagram sessions of both (session).",
		func(s *Sources, to emit) {
			g := s.Gateway()
			to(float64(g.EgressOpen), "egress")
			to(float64(g.IngressOpen), "ingress")
			to(float64(g.Sessions), "session")
		}, "direction"),
	counter("gateway_egress_connections_total", "TCP connections of pods to the outside, by what became of them.", func(s *Sources, to emit) {
		g := s.Gateway()
		results(to, result{"made", g.EgressDialed}, result{"refused", g.EgressRefused}, result{"failed", g.EgressFailed},
			result{"capped", g.EgressCapped}, result{"forbidden", g.EgressForbidden})
	}, "result"),
	counter("gateway_ingress_connections_total", "Connections and datagram sessions from outside, by what became of them. One that is accepted may fail later.", func(s *Sources, to emit) {
		g := s.Gateway()
		results(to, result{"accepted", g.IngressTotal}, result{"refused", g.IngressRefused}, result{"failed", g.IngressFailed}, result{"forbidden", g.IngressForbidden})
	}, "result"),
	counter("gateway_sessions_total", "Datagram sessions made: UDP and echo.", one(func(s *Sources) uint64 { return s.Gateway().SessionsTotal })),
	counter("gateway_sessions_recycled_total", "Datagram sessions ended early so that another could have the host's socket.",
		one(func(s *Sources) uint64 { return s.Gateway().SessionsRecycled })),
	gauge("gateway_host_sockets", "Sockets open for datagrams and echo.", one(func(s *Sources) int { return s.Gateway().HostSockets })),
	counter("gateway_datagrams_total", "Datagrams through host sockets: sent (out), received for a session (in), or for none (unsolicited).", func(s *Sources, to emit) {
		g := s.Gateway()
		results(to, result{"out", g.DatagramsOut}, result{"in", g.DatagramsIn}, result{"unsolicited", g.Unsolicited})
	}, "direction"),
	counter("gateway_echo_forbidden_total", "Pings of pods refused because the host allows no ping sockets.", one(func(s *Sources) uint64 { return s.Gateway().EchoForbidden })),
	counter("gateway_tcp_bytes_total", "Bytes moved for TCP connections that end at this node, both ways.", one(func(s *Sources) uint64 { return s.Gateway().Bytes })),
	gauge("gateway_buffer_bytes", "Memory that connections' buffers are allowed to take now.", one(func(s *Sources) int64 { return s.Gateway().MemoryBytes })),
	counter("gateway_buffer_capped_total", "Connections reset because no memory was left for their first buffers.",
		one(func(s *Sources) uint64 { return s.Gateway().MemoryCapped })),
	counter("gateway_ring_drops_total", "Packets to pods lost because a worker fell behind.", one(func(s *Sources) uint64 { return s.Gateway().RingDropped })),

	gauge("proxy_connections", "Open connections of services in proxy mode, all together.", one(func(s *Sources) int {
		n := 0
		for _, p := range s.Proxies() {
			n += p.Open
		}
		return n
	})),
}

// result is one value of a family with a single label.
type result struct {
	label string
	n     uint64
}

func results(to emit, all ...result) {
	for _, r := range all {
		to(float64(r.n), r.label)
	}
}

func byLabel(values func(*Sources) map[string]int) func(*Sources, emit) {
	return func(s *Sources, to emit) {
		for label, n := range values(s) {
			to(float64(n), label)
		}
	}
}

func perObject(value func(*upkeep.Status) float64) func(*Sources, emit) {
	return func(s *Sources, to emit) {
		for _, o := range s.Upkeep() {
			to(value(&o), o.Object)
		}
	}
}

// readDrops gives every reason, those that never happened too: a counter that first
// appears with its first increment is not seen to rise.
func readDrops(s *Sources, to emit) {
	var sum [drop.Count]uint64
	for reason, n := range s.Retired() {
		sum[reason] += n
	}
	for _, p := range s.Ports() {
		for reason, n := range p.Drops {
			sum[reason] += n
		}
	}
	for reason := int(drop.None) + 1; reason < drop.Count; reason++ {
		to(float64(sum[reason]), drop.Reason(reason).String())
	}
}

// otherPod stands for the pods beyond MaxPods.
const otherPod = "other"

// perPort gives a figure of each port. A pod with several interfaces has one.
func perPort(value func(*Port) uint64) func(*Sources, emit) {
	return func(s *Sources, to emit) {
		type whose struct{ kind, namespace, pod string }
		sums := map[whose]uint64{}
		pods := 0
		for _, p := range s.Ports() {
			w := whose{p.Kind, p.Namespace, p.Pod}
			if _, known := sums[w]; !known && p.Kind == "pod" {
				if pods++; pods > MaxPods {
					w = whose{p.Kind, "", otherPod}
				}
			}
			sums[w] += value(&p)
		}
		for w, n := range sums {
			to(float64(n), w.kind, w.namespace, w.pod)
		}
	}
}

func portDrops(p *Port) uint64 {
	var sum uint64
	for _, n := range p.Drops {
		sum += n
	}
	return sum
}

func readForwarded(s *Sources, to emit) {
	f := s.DNS().Forwarder
	results(to, result{"asked", f.Asked}, result{"hit", f.Hits}, result{"joined", f.Joined}, result{"refused", f.Refused}, result{"failed", f.Failed})
}

func readListeners(s *Sources, to emit) {
	type which struct{ kind, state string }
	n := map[which]int{}
	for _, l := range s.Listeners() {
		w := which{strings.ReplaceAll(l.Kind.String(), " ", "-"), "open"}
		if l.Err != nil {
			w.state = "failed"
		}
		n[w]++
	}
	for w, n := range n {
		to(float64(n), w.kind, w.state)
	}
}
