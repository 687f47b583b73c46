package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
	"vswitch/internal/wiretest"
)

// newMixedCluster is a cluster of whose nodes one has UDP segmentation offload and
// the other has not, and on each of which one pod has a TAP with offloads (a1,
// b1) and one a plain TAP (a2, b2).
func newMixedCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, lab: labtest.New(t, lab.Config{BinDir: labtest.BinDir(t)})}
	for _, name := range []string{"a", "b"} {
		n, err := c.lab.AddNode(name)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := lab.RunCluster(ctx, c.nodes[:1], "--offload=auto"); err != nil {
		t.Fatal(err)
	}
	err := c.nodes[1].StartDaemon(ctx, lab.RunConfig{Store: "etcd=" + c.nodes[0].StoreURL(), Args: []string{"--insecure", "--offload=off"}})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range []struct {
		name, offload string
		to            **lab.Pod
	}{{"a1", "auto", &c.a1}, {"a2", "off", &c.a2}, {"b1", "auto", &c.b1}, {"b2", "off", &c.b2}} {
		if *p.to, err = c.nodes[i/2].AddPod(ctx, lab.PodSpec{Name: p.name, Offload: p.offload}); err != nil {
			t.Fatal(err)
		}
	}
	c.waitJoined()
	return c
}

// largestDatagram is the longest payload of a UDP datagram over IPv4 (RFC 768, RFC 791).
const largestDatagram = 65507

// Case 3 with offloads on, off and mixed between the two ends, of the tunnel and of
// the TAPs: streams and datagrams arrive as they were sent. In the long form 10 GiB.
func TestIntegrityOfMixedOffloads(t *testing.T) {
	c := newMixedCluster(t)
	pods := []*lab.Pod{c.a1, c.a2, c.b1, c.b2}
	for _, p := range pods {
		serveDigests(t, p, 7100)
	}
	each, datagrams := 4<<20, 10
	if labtest.Long() {
		each, datagrams = 10<<30/24, 500 // twelve pairs, two families
	}
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			for _, family := range []int{4, 6} {
				t.Run(fmt.Sprintf("%s to %s, IPv%d", from.Spec.Name, to.Spec.Name, family), func(t *testing.T) {
					addr := netip.AddrPortFrom(to.IP(family), 7100)
					if err := bulkTCP(from, addr, 1450, each); err != nil {
						t.Errorf("TCP: %v", err)
					}
					conn, err := dial(from.Namespace, "udp", netip.AddrPort{}, addr)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					for i := range datagrams {
						n := rand.IntN(largestDatagram + 1)
						if i < 2 {
							n = i * largestDatagram // the shortest and the longest there are
						}
						payload := make([]byte, n)
						for i := range payload {
							payload[i] = byte(rand.Uint32())
						}
						want := sha256.Sum256(payload)
						if err := exchange(conn, payload, want[:]); err != nil {
							t.Errorf("UDP, %d bytes: %v", len(payload), err)
						}
					}
				})
			}
		}
	}
}

// Trains between two nodes are probed before long: the node that sends some finds that
// they arrive, the other, whose offload is off, knows that it sends none.
func TestTrainsAreProbed(t *testing.T) {
	c := newMixedCluster(t)
	for i, want := range []string{"on", "off"} {
		var rows []struct {
			Name, Trains  string
			TrainFailures int
		}
		c.eventually("node "+c.nodes[i].Host+" knows of trains to the other: "+want, func() error {
			if err := c.nodes[i].Get(t.Context(), "nodes", &rows); err != nil {
				return err
			}
			for _, r := range rows {
				if r.Name == c.nodes[1-i].Host && (r.Trains != want || r.TrainFailures != 0) || r.Name == c.nodes[i].Host && r.Trains != "" {
					return fmt.Errorf("node %s: trains %q, %d failures", r.Name, r.Trains, r.TrainFailures)
				}
			}
			return nil
		})
	}
}

// Case 7: a packet that is damaged when it enters is never repaired and delivered
// as good: straight and through a service, where checksums are rewritten, to pods with
// and without offloads. A good packet behind it arrives, so the damaged one was not just late.
func TestDamagedStaysDamaged(t *testing.T) {
	c := newMixedCluster(t)
	raw := openRaw(t, c.a1)
	gateway := [6]byte{0x02, 0x76, 0x73, 0x77, 0, 1}
	for _, to := range []*lab.Pod{c.a2, c.b1, c.b2} {
		serveDigests(t, to, 7100)
		s := c.digestService(to)
		for _, family := range []int{4, 6} {
			got := make(chan string, 16)
			port := 7200 + uint16(family)
			listenUDP(t, to.Namespace, netip.AddrPortFrom(to.IP(family), port), func(_ netip.AddrPort, b []byte) []byte {
				got <- string(b)
				return nil
			})
			for name, target := range map[string]netip.AddrPort{
				"straight":          netip.AddrPortFrom(to.IP(family), port),
				"through a service": netip.AddrPortFrom(s.ip(family), 71),
			} {
				if name == "through a service" {
					// The endpoint answers with a digest: of the damaged packet there must be none.
					if err := c.noAnswerToDamaged(raw, gateway, family, target); err != nil {
						t.Errorf("%s to %s, IPv%d: %v", name, to.Spec.Name, family, err)
					}
					continue
				}
				p := wiretest.Packet{SrcMAC: [6]byte(c.a1.MAC), DstMAC: gateway, Src: c.a1.IP(family), Dst: target.Addr(),
					Proto: 17, SrcPort: 5000, DstPort: target.Port(), Payload: []byte("damaged")}
				b := p.Frame()
				b[len(b)-1] ^= 0x40
				raw.send(t, b)
				p.Payload = []byte("good")
				deadline := time.After(10 * time.Second)
				for done := false; !done; {
					raw.send(t, p.Frame())
					select {
					case said := <-got:
						if said != "good" {
							t.Errorf("%s to %s, IPv%d: received %q", name, to.Spec.Name, family, said)
						}
						done = true
					case <-time.After(100 * time.Millisecond): // UDP may lose the good one: again
					case <-deadline:
						t.Fatalf("%s to %s, IPv%d: the good packet does not arrive", name, to.Spec.Name, family)
					}
				}
			}
		}
	}
}

// noAnswerToDamaged sends a damaged and a good datagram to a service that answers with
// digests, from one port, and takes the answers with a socket at that port.
func (c *cluster) noAnswerToDamaged(raw *rawSocket, gateway [6]byte, family int, service netip.AddrPort) error {
	conn, err := dial(c.a1.Namespace, "udp", netip.AddrPort{}, service)
	if err != nil {
		return err
	}
	defer conn.Close()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return err
	}
	p := wiretest.Packet{SrcMAC: [6]byte(c.a1.MAC), DstMAC: gateway, Src: local.Addr(), Dst: service.Addr(),
		Proto: 17, SrcPort: local.Port(), DstPort: service.Port(), Payload: []byte("damaged")}
	for round := range 2 { // the flow's first packet, and one of a flow that exists
		b := p.Frame()
		b[len(b)-1] ^= 0x40
		raw.send(c.t, b)
		good := fmt.Appendf(nil, "good %d", round)
		want := sha256.Sum256(good)
		if err := exchange(conn, good, want[:]); err != nil {
			return fmt.Errorf("round %d: %w", round, errors.Join(errors.New("the first answer is not to the good packet"), err))
		}
	}
	return nil
}
