package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vswitch/internal/lab"
)

// resolverAddr is where the nodes' own resolvers listen, as systemd-resolved does:
// pods can't get there, the daemon can.
var resolverAddr = netip.MustParseAddrPort("127.0.0.53:53")

const dnsServices = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: peers}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.example.com}
`

func TestDNS(t *testing.T) {
	need(t, "curl", "unshare")
	c := newCluster(t, "--dns-upstream", resolverAddr.String())
	asked := make(chan string, 1000)
	for _, n := range c.nodes {
		serveResolver(t, n.Namespace, asked)
	}
	web1, web2 := c.pod(0, "web1", map[string]string{"app": "web"}), c.pod(1, "web2", map[string]string{"app": "web"})
	for _, p := range []*lab.Pod{web1, web2} {
		serveHTTPName(t, p, 8080)
	}
	c.apply(dnsServices)
	for _, p := range []*lab.Pod{c.a1, c.b1} {
		c.eventually("both pods are known", func() error {
			return c.answers(p, 4, "udp", "peers.default.svc.cluster.local.", dns.TypeA, 0, web1.IP(4).String(), web2.IP(4).String())
		})
	}
	web := c.service("web")
	for _, p := range []*lab.Pod{c.a1, c.b1} {
		for _, family := range []int{4, 6} {
			for _, network := range []string{"udp", "tcp"} {
				t.Run(fmt.Sprintf("%s asks by %s, IPv%d", p.Spec.Name, network, family), func(t *testing.T) {
					for _, q := range []struct {
						name  string
						qtype uint16
						rcode int
						want  []string
					}{
						{"web.default.svc.cluster.local.", dns.TypeA, 0, []string{web.ip(4).String()}},
						{"web.default.svc.cluster.local.", dns.TypeAAAA, 0, []string{web.ip(6).String()}},
						{"web.default.svc.cluster.local.", dns.TypeMX, 0, nil},
						{"peers.default.svc.cluster.local.", dns.TypeAAAA, 0, []string{web1.IP(6).String(), web2.IP(6).String()}},
						{"_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV, 0, []string{"0 100 80 web.default.svc.cluster.local."}},
						{reverseName(t, web.ip(4)), dns.TypePTR, 0, []string{"web.default.svc.cluster.local."}},
						{reverseName(t, web.ip(6)), dns.TypePTR, 0, []string{"web.default.svc.cluster.local."}},
						{reverseName(t, web2.IP(4)), dns.TypePTR, 0, []string{strings.ReplaceAll(web2.IP(4).String(), ".", "-") + ".peers.default.svc.cluster.local."}},
						{"nobody.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
						{"www.example.com.", dns.TypeA, 0, []string{"192.0.2.80"}},
						{"outside.default.svc.cluster.local.", dns.TypeA, 0, []string{"www.example.com.", "192.0.2.80"}},
						{"nobody.example.com.", dns.TypeA, dns.RcodeNameError, nil},
					} {
						if err := c.answers(p, family, network, q.name, q.qtype, q.rcode, q.want...); err != nil {
							t.Error(err)
						}
					}
				})
			}
			t.Run(fmt.Sprintf("%s gets what is too long for a datagram by TCP, IPv%d", p.Spec.Name, family), func(t *testing.T) {
				r, err := askDNS(p, c.dnsAddr(family), "udp", "long.example.com.", dns.TypeTXT)
				if err != nil || !r.Truncated {
					t.Errorf("by UDP: %v, %v; want a truncated answer", r, err)
				}
				r, err = askDNS(p, c.dnsAddr(family), "tcp", "long.example.com.", dns.TypeTXT)
				if err != nil || r.Truncated || len(r.Answer) != longRecords {
					t.Errorf("by TCP: %v; want %d records", err, longRecords)
				}
			})
			t.Run(fmt.Sprintf("%s: programs find services, IPv%d", p.Spec.Name, family), func(t *testing.T) {
				for _, name := range []string{"web", "web.default", "web.default.svc.cluster.local", "peers.default.svc.cluster.local:8080"} {
					out, err := curlByName(c, p, family, "http://"+name+"/")
					if err != nil || !strings.HasPrefix(out, "web") {
						t.Errorf("curl %s: %q, %v", name, out, err)
					}
				}
			})
		}
	}
	t.Run("the cluster's names stay in the cluster", func(t *testing.T) {
		for range len(asked) { // it stays open: a question sent again may come yet
			if name := <-asked; !strings.HasSuffix(name, "example.com.") {
				t.Errorf("the nodes' resolver was asked for %s", name)
			}
		}
	})
	t.Run("a service at the address goes first", func(t *testing.T) { c.testClusterDNS(t) })
}

// testClusterDNS gives the DNS address to a service, as a cluster with its own DNS
// has it, and takes it away again.
func (c *cluster) testClusterDNS(t *testing.T) {
	own := c.pod(1, "coredns", map[string]string{"app": "dns"})
	listenDNS(t, own.Namespace, ":53", func(r *dns.Msg) {
		r.Answer = append(r.Answer, record(t, r.Question[0].Name+" 5 IN A 198.51.100.53"))
	})
	yaml := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: kube-dns}
spec:
  clusterIPs: [%q, %q]
  ipFamilyPolicy: RequireDualStack
  selector: {app: dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
`, c.dnsAddr(4).Addr(), c.dnsAddr(6).Addr())
	c.apply(yaml)
	for _, family := range []int{4, 6} {
		for _, network := range []string{"udp", "tcp"} {
			c.eventually("the service answers", func() error {
				return c.answers(c.a1, family, network, "web.default.svc.cluster.local.", dns.TypeA, 0, "198.51.100.53")
			})
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.nodes[0].Delete(ctx, yaml); err != nil {
		t.Fatal(err)
	}
	web := c.service("web")
	for _, family := range []int{4, 6} {
		for _, network := range []string{"udp", "tcp"} {
			c.eventually("the node answers again", func() error {
				return c.answers(c.a1, family, network, "web.default.svc.cluster.local.", dns.TypeA, 0, web.ip(4).String())
			})
		}
	}
}

// dnsAddr is the tenth address of the nodes' default --service-cidr.
func (c *cluster) dnsAddr(family int) netip.AddrPort {
	if family == 4 {
		return netip.MustParseAddrPort("10.96.0.10:53")
	}
	return netip.MustParseAddrPort("[fd00:10:96::a]:53")
}

// answers asks a question from a pod and compares code and record data, in any order.
func (c *cluster) answers(p *lab.Pod, family int, network, name string, qtype uint16, rcode int, want ...string) error {
	r, err := askDNS(p, c.dnsAddr(family), network, name, qtype)
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, dns.TypeToString[qtype], err)
	}
	var got []string
	for _, rr := range r.Answer {
		got = append(got, strings.Join(strings.Fields(rr.String())[4:], " "))
	}
	slices.Sort(got)
	slices.Sort(want)
	if r.Rcode != rcode || !slices.Equal(got, want) {
		return fmt.Errorf("%s %s: %s %q, want %s %q", name, dns.TypeToString[qtype], dns.RcodeToString[r.Rcode], got, dns.RcodeToString[rcode], want)
	}
	return nil
}

func askDNS(p *lab.Pod, at netip.AddrPort, network, name string, qtype uint16) (*dns.Msg, error) {
	raw, err := dial(p.Namespace, network, netip.AddrPort{}, at)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(5 * time.Second))
	conn := dns.Conn{Conn: raw, UDPSize: 1232}
	q := new(dns.Msg).SetQuestion(name, qtype).SetEdns0(1232, false)
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	r, err := conn.ReadMsg()
	if err == nil && r.Id != q.Id {
		err = fmt.Errorf("answer %d to question %d", r.Id, q.Id)
	}
	return r, err
}

const longRecords = 100

// serveResolver is a resolver that knows example.com and notes what it is asked.
func serveResolver(t *testing.T, ns *lab.Namespace, asked chan<- string) {
	listenDNS(t, ns, resolverAddr.String(), func(r *dns.Msg) {
		q := r.Question[0]
		select {
		case asked <- q.Name:
		default:
		}
		switch {
		case q.Name == "www.example.com." && q.Qtype == dns.TypeA:
			r.Answer = append(r.Answer, record(t, "www.example.com. 30 IN A 192.0.2.80"))
		case q.Name == "long.example.com." && q.Qtype == dns.TypeTXT:
			for i := range longRecords {
				r.Answer = append(r.Answer, record(t, fmt.Sprintf("long.example.com. 30 IN TXT %q", strings.Repeat("x", 100)+fmt.Sprint(i))))
			}
		default:
			r.Rcode = dns.RcodeNameError
			r.Ns = append(r.Ns, record(t, "example.com. 30 IN SOA ns.example.com. root.example.com. 1 2 3 4 30"))
		}
	})
}

func record(t *testing.T, line string) dns.RR {
	rr, err := dns.NewRR(line)
	if err != nil {
		t.Errorf("%s: %v", line, err)
	}
	return rr
}

// listenDNS serves UDP and TCP at an address of a namespace.
func listenDNS(t *testing.T, ns *lab.Namespace, at string, answer func(*dns.Msg)) {
	t.Helper()
	var packets net.PacketConn
	var conns net.Listener
	err := ns.Do(func() (err error) {
		if packets, err = net.ListenPacket("udp", at); err != nil {
			return err
		}
		conns, err = net.Listen("tcp", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		answer(r)
		if _, tcp := w.RemoteAddr().(*net.TCPAddr); !tcp {
			r.Truncate(1232)
		}
		w.WriteMsg(r)
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: conns, Handler: handler}} {
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			s.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			s.Shutdown()
			<-ended
		})
	}
}

func reverseName(t *testing.T, a netip.Addr) string {
	t.Helper()
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// serveHTTPName answers every request with the pod's name.
func serveHTTPName(t *testing.T, p *lab.Pod, port uint16) {
	listenTCP(t, p.Namespace, netip.AddrPortFrom(netip.IPv6Unspecified(), port), func(c net.Conn) {
		c.Read(make([]byte, 4096))
		fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n%s\n", p.Spec.Name)
	})
}

// curlByName fetches a URL in a pod whose /etc/resolv.conf is as its CNI result asks.
func curlByName(c *cluster, p *lab.Pod, family int, url string) (string, error) {
	conf := filepath.Join(c.lab.Dir, fmt.Sprintf("resolv-%d.conf", family))
	d := p.Result.DNS
	text := fmt.Sprintf("search %s\noptions %s\n", strings.Join(d.Search, " "), strings.Join(d.Options, " "))
	for _, server := range d.Nameservers {
		if a, err := netip.ParseAddr(server); err == nil && a.Is4() == (family == 4) {
			text += "nameserver " + server + "\n"
		}
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// A mount namespace of its own: /etc/resolv.conf is often a link, so what it leads to is covered.
	script := `mount --bind "$1" "$(readlink -f /etc/resolv.conf)" && exec curl -sS --noproxy '*' --max-time 20 "-$2" "$3"`
	out, err := p.Exec(ctx, lab.Command{
		Path: "unshare", Args: []string{"--mount", "sh", "-c", script, "sh", conf, fmt.Sprint(family), url},
	})
	return string(out), err
}
