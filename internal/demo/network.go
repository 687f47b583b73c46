package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// The network:
//
//	node a: pods client and web-a      node b: pods visitor and web-b      outside
//	    |                                  |                                   |
//	    +------------------ underlay ------+-----------------------------------+
//
// web-a, web-b and the machine outside run a server; the service web stands for
// the first two.

const (
	serverPort  = 7000
	servicePort = 80
	nodePort    = 30080
)

var (
	service4 = netip.MustParseAddr("10.96.0.80")
	service6 = netip.MustParseAddr("fd00:10:96::80")
)

// serviceYAML is what a user would apply; the endpoints follow from the labels.
func serviceYAML(nodePort uint16) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
spec:
  type: LoadBalancer
  selector: {app: web}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: %[1]s
  clusterIPs: [%[1]q, %[2]q]
  ports:
  - {name: tcp, protocol: TCP, port: %[3]d, targetPort: %[4]d, nodePort: %[5]d}
  - {name: udp, protocol: UDP, port: %[3]d, targetPort: %[4]d, nodePort: %[5]d}
`, service4, service6, servicePort, serverPort, nodePort)
}

// dual is an address of each family; one that is not valid is not there.
type dual struct{ v4, v6 netip.Addr }

func (d dual) list() []netip.Addr {
	var as []netip.Addr
	for _, a := range []netip.Addr{d.v4, d.v6} {
		if a.IsValid() {
			as = append(as, a)
		}
	}
	return as
}

// String is the addresses as they stand in a sentence.
func (d dual) String() string {
	var words []string
	for _, a := range d.list() {
		words = append(words, a.String())
	}
	return strings.Join(words, " and ")
}

type network struct {
	self                        string
	a, b                        *lab.Node
	outside                     *lab.Namespace
	client, webA, visitor, webB *lab.Pod

	door      dual   // where node ports are open
	nodePort  uint16 // which
	balancer  dual   // the load balancer's addresses
	stranger  dual   // the machine outside, as a client
	world     dual   // and as a server
	worldPort uint16
	egress    dual   // whom a server outside takes pods for
	noEcho    bool   // the nodes' host lets nobody ping: pods are told
	lowPort   uint16 // where the visitor's host port 80 is open; 0: it has none
}

func (n *network) pods() []*lab.Pod { return []*lab.Pod{n.client, n.webA, n.visitor, n.webB} }

// build makes the network and returns once every server listens and the
// service is applied.
func build(ctx context.Context, l *lab.Lab, self string) (*network, error) {
	n := &network{self: self, nodePort: nodePort, world: dual{lab.World4, lab.World6}, worldPort: serverPort}
	var err error
	if n.a, err = l.AddNode("a"); err != nil {
		return nil, err
	}
	if n.b, err = l.AddNode("b"); err != nil {
		return nil, err
	}
	outside, err := l.Outside()
	if err != nil {
		return nil, err
	}
	n.outside = outside.Namespace
	n.door = dual{n.a.Underlay4, n.a.Underlay6}
	n.egress = n.door
	n.balancer = dual{v4: n.a.Underlay4} // without --lb-cidr, where the nodes' tunnels are
	n.stranger = dual{outside.Underlay4, outside.Underlay6}
	if err := lab.RunCluster(ctx, []*lab.Node{n.a, n.b}); err != nil {
		return nil, err
	}
	return n, n.populate(ctx)
}

// populate makes the pods, starts the servers and applies the service.
func (n *network) populate(ctx context.Context) (err error) {
	web := map[string]string{"app": "web"}
	var visitor []lab.PortMapping
	if n.lowPort != 0 {
		for _, protocol := range []string{"tcp", "udp"} {
			visitor = append(visitor, lab.PortMapping{HostPort: servicePort, ContainerPort: serverPort, Protocol: protocol})
		}
	}
	for _, p := range []struct {
		pod  **lab.Pod
		node *lab.Node
		spec lab.PodSpec
	}{
		{&n.client, n.a, lab.PodSpec{Name: "client"}},
		{&n.webA, n.a, lab.PodSpec{Name: "web-a", Labels: web}},
		{&n.visitor, n.b, lab.PodSpec{Name: "visitor", Ports: visitor}},
		{&n.webB, n.b, lab.PodSpec{Name: "web-b", Labels: web}},
	} {
		if *p.pod, err = p.node.AddPod(ctx, p.spec); err != nil {
			return err
		}
	}
	var world []string
	for _, a := range n.world.list() {
		world = append(world, netip.AddrPortFrom(a, n.worldPort).String())
	}
	any := ":" + strconv.Itoa(serverPort)
	return errors.Join(
		n.serve(ctx, n.webA.Namespace, "web-a", any),
		n.serve(ctx, n.webB.Namespace, "web-b", any),
		n.serve(ctx, n.visitor.Namespace, "visitor", any),
		n.serve(ctx, n.outside, "outside", world...),
		n.a.Apply(ctx, serviceYAML(n.nodePort)))
}

var listening = regexp.MustCompile("^" + traffic.ReadyLine)

// serve starts a server process and waits until it listens.
func (n *network) serve(ctx context.Context, s *lab.Namespace, name string, listen ...string) error {
	args := []string{"serve", "--name", name}
	for _, a := range listen {
		args = append(args, "--listen", a)
	}
	p, err := s.Start(lab.Command{Name: "serve", Path: n.self, Args: args})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = p.WaitLog(ctx, listening)
	return err
}
