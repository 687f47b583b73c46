package node

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"vswitch/control"
	"vswitch/internal/attach"
	"vswitch/internal/nodeapi"
	"vswitch/internal/upkeep"
	"vswitch/vswitch/fib"
	"vswitch/vswitch/flow"
	"vswitch/vswitch/gateway"
)

// view is what `vswitch get` shows: the cluster as this node knows it, store or
// no store, and this node's own dataplane.
type view struct {
	node        string
	objects     *control.Controller
	attachments *attach.Manager
	fib         *fib.Table
	flows       *flow.Table
	ports       *countedPorts
	dataplane   *dataplane
	upkeep      *upkeep.Watch
}

const kindsOfRows = "nodes, pods, services, endpoints, listeners, routes, flows, drops, upkeep or processes"

// rows lists one kind; singular names will do.
func (v *view) rows(_ context.Context, kind string) (iter.Seq[any], error) {
	kind = singular(kind)
	if kind == "flow" {
		return v.flowRows, nil
	}
	list := map[string]func() []any{
		"node": v.nodes, "pod": v.pods, "service": v.services, "endpoint": v.endpoints, "listener": v.listeners,
		"route": v.routes, "drop": v.drops, "upkeep": v.upkeepRows, "process": v.processes,
	}[kind]
	if list == nil {
		return nil, &nodeapi.UnknownKindError{Kind: kind, Want: kindsOfRows}
	}
	return slices.Values(list()), nil
}

func singular(kind string) string {
	kind = strings.ToLower(kind)
	if kind == "process" || kind == "processes" {
		return "process"
	}
	return strings.TrimSuffix(kind, "s")
}

// anyOf is rows as rows gives them.
func anyOf[T any](rows []T) []any {
	out := make([]any, len(rows))
	for i, r := range rows {
		out[i] = r
	}
	return out
}

type nodeRow struct {
	Name     string   `json:"name"`
	PodCIDRs []string `json:"podCIDRs"`
	Underlay string   `json:"underlay"` // as --underlay takes it
	UDPPorts []uint16 `json:"udpPorts"`
	VNI      uint32   `json:"vni"`
	VTEPMAC  string   `json:"vtepMAC"`
	// IngressVNI: clients outside keep their address towards this node's pods,
	// whichever node they come to.
	IngressVNI uint32 `json:"ingressVNI,omitempty"`
	// Trains: whether segmentation offload is used towards the node: on, unchecked
	// (used, not yet probed) or off; and how often probes have found it broken.
	Trains        string `json:"trains,omitempty"`
	TrainFailures uint64 `json:"trainFailures,omitempty"`
	Ready         bool   `json:"ready"`
}

func (v *view) nodes() []any {
	var rows []any
	for _, o := range v.objects.List(control.KindNode) {
		n := o.(*corev1.Node)
		r := nodeRow{Name: n.Name, PodCIDRs: n.Spec.PodCIDRs, Ready: v.objects.Live(n.Name) && control.NodeReady(n)}
		f, err := control.NodeFactsOf(n)
		if err != nil { // what can't be read can't be reached
			r.Ready = false
			rows = append(rows, r)
			continue
		}
		r.Underlay, r.UDPPorts, r.VNI, r.VTEPMAC = join(f.Underlays), f.UDPPorts, f.VNI, f.VTEPMAC.String()
		r.IngressVNI = f.IngressVNI
		r.Trains, r.TrainFailures = v.dataplane.trains(n.Name)
		rows = append(rows, r)
	}
	return rows
}

type podRow struct {
	Name        string   `json:"name"`
	Namespace   string   `json:"namespace"`
	Node        string   `json:"node"`
	IPs         []string `json:"ips"`
	MAC         string   `json:"mac"`
	ContainerID string   `json:"containerID"`
	// State and Problem are of this node's pods alone: attached, pending or detached,
	// and why it is detached.
	State   string `json:"state,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// pods are those of the cluster, and of this node those too that nobody is told of
// because they can't be reached.
func (v *view) pods() []any {
	own := map[control.Key]attach.Attachment{}
	for _, a := range v.attachments.List() {
		own[control.PodKey(v.node, a.ContainerID, a.Ifname)] = a
	}
	var rows []podRow
	add := func(p *corev1.Pod) {
		r := podRow{
			Name: p.Name, Namespace: p.Namespace, Node: p.Spec.NodeName, IPs: []string{},
			MAC: p.Annotations[control.AnnotationMAC], ContainerID: p.Annotations[control.AnnotationContainerID],
		}
		for _, ip := range p.Status.PodIPs {
			r.IPs = append(r.IPs, ip.IP)
		}
		if a, ok := own[control.KeyOf(p)]; ok {
			r.State, r.Problem = a.State.String(), a.Problem
			delete(own, control.KeyOf(p))
		}
		rows = append(rows, r)
	}
	for _, o := range v.objects.List(control.KindPod) {
		add(o.(*corev1.Pod))
	}
	for _, a := range own {
		add(v.attachments.Record(&a))
	}
	slices.SortStableFunc(rows, func(a, b podRow) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ContainerID, b.ContainerID))
	})
	return anyOf(rows)
}

type serviceRow struct {
	Name                  string               `json:"name"`
	Namespace             string               `json:"namespace"`
	Type                  string               `json:"type"`
	ClusterIP             string               `json:"clusterIP"`
	ClusterIPs            []string             `json:"clusterIPs"`
	Ports                 []corev1.ServicePort `json:"ports"`
	Selector              map[string]string    `json:"selector,omitempty"`
	ExternalTrafficPolicy string               `json:"externalTrafficPolicy,omitempty"`
	ExternalName          string               `json:"externalName,omitempty"`
	// ExternalAddrs are those that clients outside the cluster use: of its load
	// balancers and its external ones, as far as they are programmed.
	ExternalAddrs []string             `json:"externalAddresses,omitempty"`
	Status        corev1.ServiceStatus `json:"status"`
	// MovedPorts are low ports of this node that are open at another.
	MovedPorts []string `json:"movedPorts,omitempty"`
	Problems   []string `json:"problems,omitempty"` // what it asks for that is not done
	// Proxy is what this node's proxy has carried, for each port in that mode.
	Proxy []proxyRow `json:"proxy,omitempty"`
}

type proxyRow struct {
	Port             string `json:"port,omitempty"` // its name
	Open             int    `json:"open"`
	Accepted         uint64 `json:"accepted"`
	Refused          uint64 `json:"refused"`
	Retried          uint64 `json:"retried"` // endpoints that did not answer and were replaced
	BytesToEndpoints uint64 `json:"bytesToEndpoints"`
	BytesToClients   uint64 `json:"bytesToClients"`
}

// proxyRows are the services in proxy mode, each by its ports.
func proxyRows(all []gateway.ProxyStats) map[control.Key][]proxyRow {
	rows := map[control.Key][]proxyRow{}
	for _, s := range all {
		k := control.Key{Kind: control.KindService, Scope: s.Service.Namespace, Name: s.Service.Name}
		rows[k] = append(rows[k], proxyRow{
			Port: s.Service.PortName, Open: s.Open, Accepted: s.Accepted, Refused: s.Refused, Retried: s.Retried,
			BytesToEndpoints: s.ToEndpoints, BytesToClients: s.ToClients,
		})
	}
	return rows
}

func (v *view) services() []any {
	problems := map[control.Key][]string{}
	for _, p := range v.objects.Problems() {
		problems[p.Object] = append(problems[p.Object], p.Reason)
	}
	listeners := v.dataplane.listeners()
	moved := movedPorts(listeners)
	for k, ps := range listenerProblems(listeners) {
		problems[k] = append(problems[k], ps...)
	}
	balancers, externals := map[control.Key][]netip.Addr{}, map[control.Key][]netip.Addr{}
	for _, s := range v.objects.Services() {
		k := control.Key{Kind: control.KindService, Scope: s.Namespace, Name: s.Name}
		balancers[k] = append(balancers[k], s.LoadBalancerIPs...)
		externals[k] = append(externals[k], s.ExternalIPs...)
	}
	proxied := proxyRows(v.dataplane.proxies())
	var rows []any
	for _, o := range v.objects.List(control.KindService) {
		s := o.(*corev1.Service)
		k := control.KeyOf(s)
		r := serviceRow{
			Name: s.Name, Namespace: s.Namespace, Type: string(s.Spec.Type),
			ClusterIP: s.Spec.ClusterIP, ClusterIPs: s.Spec.ClusterIPs, Ports: s.Spec.Ports,
			Selector: s.Spec.Selector, ExternalTrafficPolicy: string(s.Spec.ExternalTrafficPolicy),
			ExternalName: s.Spec.ExternalName, Status: s.Status, MovedPorts: moved[k], Problems: problems[k], Proxy: proxied[k],
		}
		for _, a := range distinct(slices.Concat(balancers[k], externals[k])) {
			r.ExternalAddrs = append(r.ExternalAddrs, a.String())
		}
		if len(s.Status.LoadBalancer.Ingress) == 0 {
			for _, a := range distinct(balancers[k]) { // the nodes', which no status says
				r.Status.LoadBalancer.Ingress = append(r.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
			}
		}
		rows = append(rows, r)
	}
	return rows
}

func distinct(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// endpointRow is an EndpointSlice's fields, one row for each service port, family
// and target port: what the selector came to.
type endpointRow struct {
	Name        string         `json:"name"` // the service
	Namespace   string         `json:"namespace"`
	AddressType string         `json:"addressType"`
	Ports       []endpointPort `json:"ports"`
	Endpoints   []endpoint     `json:"endpoints"`
}

type endpointPort struct {
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

type endpoint struct {
	Addresses  []string   `json:"addresses"`
	NodeName   string     `json:"nodeName,omitempty"`
	Conditions conditions `json:"conditions"`
	// TakesNew are the traffic policies under which it takes new connections on
	// this node: Cluster, Local, both or none.
	TakesNew []string `json:"takesNew"`
}

func takesNew(e *control.Endpoint) []string {
	policies := []string{}
	if e.Cluster {
		policies = append(policies, string(corev1.ServiceInternalTrafficPolicyCluster))
	}
	if e.Local {
		policies = append(policies, string(corev1.ServiceInternalTrafficPolicyLocal))
	}
	return policies
}

type conditions struct {
	Ready       bool `json:"ready"`
	Serving     bool `json:"serving"`
	Terminating bool `json:"terminating"`
}

func (v *view) endpoints() []any {
	var rows []any
	for _, s := range v.objects.Services() {
		byPort := map[uint16][]endpoint{}
		for _, e := range s.Endpoints {
			byPort[e.Port] = append(byPort[e.Port], endpoint{
				Addresses: []string{e.Addr.String()}, NodeName: e.Node,
				Conditions: conditions{e.Ready, e.Serving, e.Terminating}, TakesNew: takesNew(&e),
			})
		}
		r := endpointRow{Name: s.Name, Namespace: s.Namespace, AddressType: "IPv4", Ports: []endpointPort{}, Endpoints: []endpoint{}}
		if s.IPv6 {
			r.AddressType = "IPv6"
		}
		if len(byPort) == 0 {
			rows = append(rows, r)
			continue
		}
		for _, port := range slices.Sorted(maps.Keys(byPort)) {
			r.Ports = []endpointPort{{Name: s.PortName, Protocol: s.Protocol.String(), Port: port}}
			r.Endpoints = byPort[port]
			rows = append(rows, r)
		}
	}
	return rows
}

type routeRow struct {
	Destination string `json:"destination"`
	Kind        string `json:"kind"`
	Via         string `json:"via,omitempty"` // pod port, or node
}

func (v *view) routes() []any {
	names := map[uint32]string{}
	for _, p := range v.ports.Stats() {
		names[p.ID] = p.Name
	}
	type route struct {
		prefix netip.Prefix
		hop    fib.NextHop
	}
	var all []route
	for p, hop := range v.fib.All() {
		all = append(all, route{p, hop})
	}
	slices.SortFunc(all, func(a, b route) int { return a.prefix.Compare(b.prefix) })
	var rows []any
	for _, r := range all {
		row := routeRow{Destination: r.prefix.String(), Kind: r.hop.Kind.String()}
		switch r.hop.Kind {
		case fib.Port:
			row.Via = names[r.hop.Index]
		case fib.Peer:
			row.Via = v.dataplane.nodeOf(r.hop.Index)
		}
		rows = append(rows, row)
	}
	return rows
}

func join(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}
