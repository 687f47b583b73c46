package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"time"

	"vswitch/internal/lab"
	"vswitch/internal/traffic"
)

// The network:
//
//	node a: pods client and web-a      node b: pod web-b      outside
//	    |                                  |                     |
//	    +------------------ underlay ------+---------------------+
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
var serviceYAML = fmt.Sprintf(`apiVersion: v1
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

type network struct {
	self               string
	a, b, outside      *lab.Node
	client, webA, webB *lab.Pod
}

func (n *network) pods() []*lab.Pod { return []*lab.Pod{n.client, n.webA, n.webB} }

// build makes the network and returns once every server listens and the
// service is applied.
func build(ctx context.Context, l *lab.Lab, self string) (*network, error) {
	n := &network{self: self}
	var err error
	if n.a, err = l.AddNode("a"); err != nil {
		return nil, err
	}
	if n.b, err = l.AddNode("b"); err != nil {
		return nil, err
	}
	if n.outside, err = l.Outside(); err != nil {
		return nil, err
	}
	if err := lab.RunCluster(ctx, []*lab.Node{n.a, n.b}); err != nil {
		return nil, err
	}
	web := map[string]string{"app": "web"}
	for _, p := range []struct {
		pod  **lab.Pod
		node *lab.Node
		spec lab.PodSpec
	}{
		{&n.client, n.a, lab.PodSpec{Name: "client"}},
		{&n.webA, n.a, lab.PodSpec{Name: "web-a", Labels: web}},
		{&n.webB, n.b, lab.PodSpec{Name: "web-b", Labels: web}},
	} {
		if *p.pod, err = p.node.AddPod(ctx, p.spec); err != nil {
			return nil, err
		}
	}
	any := ":" + strconv.Itoa(serverPort)
	err = errors.Join(
		n.serve(ctx, n.webA.Namespace, "web-a", any),
		n.serve(ctx, n.webB.Namespace, "web-b", any),
		n.serve(ctx, n.outside.Namespace, "outside", at(lab.World4), at(lab.World6)),
		n.a.Apply(ctx, serviceYAML))
	return n, err
}

// at is a server's address.
func at(a netip.Addr) string { return netip.AddrPortFrom(a, serverPort).String() }

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
