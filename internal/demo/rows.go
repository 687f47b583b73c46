package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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
	// refused: the way is closed, and the client must be told so at once.
	refused bool
	// remark is for the reader.
	remark string
}

// rows are all paths, in the order of the design's table of traffic.
func (n *network) rows() []row {
	var rows []row
	each := func(path string, from *lab.Namespace, to dual, port uint16, protocols []traffic.Protocol, more func(*row)) {
		for _, protocol := range protocols {
			for _, a := range to.list() {
				r := row{path: path, from: from, to: netip.AddrPortFrom(a, port), protocol: protocol}
				if more != nil {
					more(&r)
				}
				rows = append(rows, r)
			}
		}
	}
	all := []traffic.Protocol{traffic.TCP, traffic.UDP, traffic.Ping}
	streams := []traffic.Protocol{traffic.TCP, traffic.UDP}
	client := n.client.Namespace

	// A pod's containers share its namespace: here two processes, over lo.
	each("container to container", n.webA.Namespace, dual{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, serverPort, all[:1], nil)
	each("pod to pod, same node", client, addrs(n.webA), serverPort, all, seenAs(n.client, "web-a"))
	each("pod to pod, across nodes", client, addrs(n.webB), serverPort, all, seenAs(n.client, "web-b"))
	service := dual{service4, service6}
	each("pod to ClusterIP", client, service, servicePort, streams, seenAs(n.client, "web-a", "web-b"))
	each("pod to service name", n.visitor.Namespace, service, servicePort, streams[:1], func(r *row) {
		seenAs(n.visitor, "web-a", "web-b")(r)
		r.name = "web.default.svc.cluster.local"
	})
	// The client's own address is promised, on whichever node the endpoint is.
	fromOutside := func(r *row) {
		r.reaches = []string{"web-a", "web-b"}
		outside := n.stranger.like(r.to.Addr())
		r.seen = map[string]netip.Addr{"web-a": outside, "web-b": outside}
	}
	each("outside to NodePort", n.outside, n.door, n.nodePort, streams, fromOutside)
	each("outside to LoadBalancer", n.outside, n.balancer, servicePort, streams, fromOutside)
	if n.lowPort != 0 {
		each(fmt.Sprintf("outside to hostPort %d", servicePort), n.outside, n.door, n.lowPort, streams, func(r *row) {
			r.reaches = []string{"visitor"}
			r.seen = map[string]netip.Addr{"visitor": n.stranger.like(r.to.Addr())}
			r.remark = fmt.Sprintf("at port %d", n.lowPort)
		})
	}
	each("pod to outside", client, n.world, n.worldPort, all, func(r *row) {
		if r.refused = r.protocol == traffic.Ping && n.noEcho; r.protocol != traffic.Ping {
			r.reaches = []string{"outside"}
			r.seen = map[string]netip.Addr{"outside": n.egress.like(r.to.Addr())}
		}
	})
	return rows
}

func addrs(p *lab.Pod) dual { return dual{p.IPv4, p.IPv6} }

// seenAs demands that the servers named all answer, and see a pod's own address.
func seenAs(pod *lab.Pod, servers ...string) func(*row) {
	return func(r *row) {
		if r.protocol == traffic.Ping {
			return // an echo reply names nobody
		}
		r.reaches = servers
		r.seen = map[string]netip.Addr{}
		for _, s := range servers {
			r.seen[s] = addrs(pod).like(r.to.Addr())
		}
	}
}

// like is the address of a's family.
func (d dual) like(a netip.Addr) netip.Addr {
	if a.Is6() {
		return d.v6
	}
	return d.v4
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
	const path = "NodePort goes and comes"
	if took, err := n.goAndCome(ctx); err != nil {
		result.Failed++
		table(w, "FAIL", path, "", "tcp", "", "", err.Error())
	} else {
		result.Passed++
		table(w, "ok", path, "", "tcp", "", "", fmt.Sprintf("with its service, closed and open again within %.2f s", took.Seconds()))
	}
	return result
}

// goAndCome deletes the service and applies it again: its node port must close at every
// address, and open. It says how long both took.
func (n *network) goAndCome(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	yaml := serviceYAML(n.nodePort)
	if err := n.a.Delete(ctx, yaml); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, firstContact)
	defer cancel()
	for _, a := range n.door.list() {
		r := row{from: n.outside, to: netip.AddrPortFrom(a, n.nodePort), protocol: traffic.TCP}
		for {
			_, err := n.load(ctx, r, "rtt", "--count", "1")
			if err != nil && strings.Contains(err.Error(), unix.ECONNREFUSED.Error()) {
				break
			}
			if ctx.Err() != nil {
				return 0, fmt.Errorf("%v is not refused after its service has gone (last: %v)", r.to, err)
			}
		}
	}
	if err := n.a.Apply(ctx, yaml); err != nil {
		return 0, err
	}
	for _, a := range n.door.list() {
		r := row{from: n.outside, to: netip.AddrPortFrom(a, n.nodePort), protocol: traffic.TCP}
		if _, err := n.load(ctx, r, "rtt", "--count", "1", "--first-contact", firstContact.String()); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func (r *row) family() string {
	if r.to.Addr().Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// measure runs the row's client processes and returns its columns.
func (n *network) measure(ctx context.Context, r row) (latency, throughput, note string, err error) {
	if r.refused {
		note, err = n.refusal(ctx, r)
		return "", "", note, err
	}
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
	if r.remark != "" {
		notes = append(notes, r.remark)
	}
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

// refusal demands that a ping is answered by an ICMP error at once, with the words of
// the client's kernel for it.
func (n *network) refusal(ctx context.Context, r row) (string, error) {
	_, err := n.load(ctx, r, "rtt", "--count", "1")
	if err == nil {
		return "", errors.New("an answer came, though this host lets nobody ping")
	}
	for _, said := range []error{unix.EHOSTUNREACH, unix.EACCES} { // of IPv4, of IPv6 (icmp_err_convert, icmpv6_err_convert)
		if strings.Contains(err.Error(), said.Error()) {
			return fmt.Sprintf("net.ipv4.ping_group_range forbids it: the pod is told %q", said), nil
		}
	}
	return "", err
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
