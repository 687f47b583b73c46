package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

const (
	roundTrips   = 200
	bulkDuration = 300 * time.Millisecond
	connections  = 30 // to a service: all to one of two endpoints by chance once in 2^29
	// firstContact is how long a path may take to come up: services and routes
	// reach a node through the store.
	firstContact = 10 * time.Second
)

// row is one path, over one family and protocol.
type row struct {
	path     string
	from     *lab.Namespace
	to       netip.AddrPort
	protocol traffic.Protocol
	// name is asked for in place of to's address; the pod's own resolver knows it.
	name string
	// reaches are the servers that must all have answered; nil: not asked.
	reaches []string
	// seen says whom a server must have taken the client for; nil: not asked.
	seen map[string]netip.Addr
}

// rows are all paths, in the order of the design's table of traffic.
func (n *network) rows() []row {
	var rows []row
	each := func(path string, from *lab.Namespace, to4, to6 netip.AddrPort, protocols []traffic.Protocol, more func(*row)) {
		for _, protocol := range protocols {
			for _, to := range []netip.AddrPort{to4, to6} {
				if !to.IsValid() {
					continue
				}
				r := row{path: path, from: from, to: to, protocol: protocol}
				if more != nil {
					more(&r)
				}
				rows = append(rows, r)
			}
		}
	}
	server := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, serverPort) }
	all := []traffic.Protocol{traffic.TCP, traffic.UDP, traffic.Ping}
	streams := []traffic.Protocol{traffic.TCP, traffic.UDP}
	client := n.client.Namespace

	// A pod's containers share its namespace: here two processes, over lo.
	each("container to container", n.webA.Namespace, server(netip.MustParseAddr("127.0.0.1")), server(netip.IPv6Loopback()),
		all[:1], nil)
	each("pod to pod, same node", client, server(n.webA.IPv4), server(n.webA.IPv6), all, n.fromClient("web-a"))
	each("pod to pod, across nodes", client, server(n.webB.IPv4), server(n.webB.IPv6), all, n.fromClient("web-b"))
	each("pod to ClusterIP", client, netip.AddrPortFrom(service4, servicePort), netip.AddrPortFrom(service6, servicePort),
		streams, n.fromClient("web-a", "web-b"))
	each("pod to service name", client, netip.AddrPortFrom(service4, servicePort), netip.AddrPortFrom(service6, servicePort),
		streams[:1], func(r *row) {
			n.fromClient("web-a", "web-b")(r)
			r.name = "web.default.svc.cluster.local"
		})
	// The client's own address is promised, on whichever node the endpoint is.
	fromOutside := func(r *row) {
		r.reaches = []string{"web-a", "web-b"}
		outside := ofFamily(r, n.outside.Underlay4, n.outside.Underlay6)
		r.seen = map[string]netip.Addr{"web-a": outside, "web-b": outside}
	}
	each("outside to NodePort", n.outside.Namespace, netip.AddrPortFrom(n.a.Underlay4, nodePort), netip.AddrPortFrom(n.a.Underlay6, nodePort),
		streams, fromOutside)
	each("outside to LoadBalancer", n.outside.Namespace, netip.AddrPortFrom(n.a.Underlay4, servicePort), netip.AddrPort{},
		streams, fromOutside) // without --lb-cidr it has the addresses of the nodes' tunnels: IPv4 here
	each("pod to outside", client, server(lab.World4), server(lab.World6), all, func(r *row) {
		if r.protocol != traffic.Ping {
			r.reaches = []string{"outside"}
			r.seen = map[string]netip.Addr{"outside": ofFamily(r, n.a.Underlay4, n.a.Underlay6)}
		}
	})
	return rows
}

// fromClient demands that the servers named all answer, and see the client pod's own address.
func (n *network) fromClient(servers ...string) func(*row) {
	return func(r *row) {
		if r.protocol == traffic.Ping {
			return // an echo reply names nobody
		}
		r.reaches = servers
		r.seen = map[string]netip.Addr{}
		for _, s := range servers {
			r.seen[s] = ofFamily(r, n.client.IPv4, n.client.IPv6)
		}
	}
}

func ofFamily(r *row, v4, v6 netip.Addr) netip.Addr {
	if r.to.Addr().Is6() {
		return v6
	}
	return v4
}

// send measures every row and prints it.
func (n *network) send(ctx context.Context, w io.Writer) Result {
	table(w, "", "path", "family", "protocol", "latency", "throughput", "")
	var result Result
	for _, r := range n.rows() {
		if ctx.Err() != nil {
			result.Failed++
			table(w, "FAIL", r.path, r.family(), string(r.protocol), "", "", context.Cause(ctx).Error())
			continue
		}
		latency, throughput, note, err := n.measure(ctx, r)
		verdict := "ok"
		if err != nil {
			verdict, note = "FAIL", err.Error()
			result.Failed++
		} else {
			result.Passed++
		}
		table(w, verdict, r.path, r.family(), string(r.protocol), latency, throughput, note)
	}
	return result
}

func (r *row) family() string {
	if r.to.Addr().Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// measure runs the row's client processes and returns its columns.
func (n *network) measure(ctx context.Context, r row) (latency, throughput, note string, err error) {
	rtt, err := n.load(ctx, r, "rtt", "--count", fmt.Sprint(roundTrips), "--first-contact", firstContact.String())
	if err != nil {
		return "", "", "", err
	}
	latency = fmt.Sprintf("%.0f us", float64(rtt.RTT.P50)/1e3)
	if rtt.RTT.Lost > 0 {
		return latency, "", "", fmt.Errorf("%d of %d messages were lost", rtt.RTT.Lost, rtt.RTT.Lost+rtt.RTT.Count)
	}
	if r.protocol == traffic.Ping {
		return latency, "", "", nil
	}
	bulk, err := n.load(ctx, r, "bulk", "--duration", bulkDuration.String())
	if err != nil {
		return latency, "", "", err
	}
	throughput = fmt.Sprintf("%.2f Gb/s", bulk.Bulk.BitsPerSecond/1e9)
	var notes []string
	if b := bulk.Bulk; b.Sent > 0 {
		notes = append(notes, fmt.Sprintf("%.0f%% of a flood arrived", 100*float64(b.Received)/float64(b.Sent)))
	}
	if r.reaches == nil {
		return latency, throughput, strings.Join(notes, "; "), nil
	}
	who, err := n.load(ctx, r, "who", "--count", fmt.Sprint(connections))
	if err != nil {
		return latency, throughput, "", err
	}
	said, err := r.judge(who)
	return latency, throughput, strings.Join(append(notes, said), "; "), err
}

// judge checks who answered, and puts it in words.
func (r *row) judge(who *traffic.Report) (string, error) {
	answered := who.Servers()
	for _, s := range r.reaches {
		if answered[s] == 0 {
			return "", fmt.Errorf("%s never answered, only %v did", s, answered)
		}
	}
	for _, a := range who.Answers {
		if !slices.Contains(r.reaches, a.Server) {
			return "", fmt.Errorf("%s answered, which is not one of %v", a.Server, r.reaches)
		}
		if want, ok := r.seen[a.Server]; ok && a.Client != want {
			return "", fmt.Errorf("%s saw %s as the client, not %s", a.Server, a.Client, want)
		}
	}
	var words []string
	for _, a := range who.Answers {
		words = append(words, fmt.Sprintf("%s saw %s", a.Server, a.Client))
	}
	slices.Sort(words)
	return strings.Join(words, ", "), nil
}

// load runs a client process in the row's namespace.
func (n *network) load(ctx context.Context, r row, what string, args ...string) (*traffic.Report, error) {
	to := r.to.String()
	if r.protocol == traffic.Ping {
		to = r.to.Addr().String()
	}
	if r.name != "" {
		to = net.JoinHostPort(r.name, strconv.Itoa(int(r.to.Port())))
		family := "ip" + strings.TrimPrefix(r.family(), "IPv")
		args = append(args, "--resolver", net.JoinHostPort(n.client.Result.DNS.Nameservers[0], "53"), "--family", family)
	}
	out, err := r.from.Exec(ctx, lab.Command{
		Name: "load", Path: n.self,
		Args: append([]string{"load", what, "--protocol", string(r.protocol), "--to", to}, args...),
	})
	if err != nil {
		return nil, err
	}
	report := &traffic.Report{}
	if err := json.Unmarshal(out, report); err != nil {
		return nil, fmt.Errorf("demo: what the client printed: %w: %q", err, out)
	}
	return report, nil
}
