package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vswitch/internal/lab"
)

type trace struct {
	Steps   []struct{ Stage, Text, Object string }
	Outcome struct{ Verdict, Text, Pod, Node, Reason string }
}

func (tr trace) String() string {
	var b strings.Builder
	for _, s := range tr.Steps {
		fmt.Fprintf(&b, "%s: %s [%s]\n", s.Stage, s.Text, s.Object)
	}
	return fmt.Sprintf("%soutcome: %+v", b.String(), tr.Outcome)
}

func traceFrom(t *testing.T, n *lab.Node, pod, to string, args ...string) trace {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := n.Vswitch(ctx, "", append([]string{"trace", "-o", "json", "--from", "default/" + pod, "--to", to}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var tr trace
	if err := json.Unmarshal(out, &tr); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return tr
}

// What trace says of a packet, the packet then does.
func TestTrace(t *testing.T) {
	c := newCluster(t)
	a := c.nodes[0]
	c.apply(webService)
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: none}, ports: [{port: 80}]}`)
	web := c.pod(1, "web", map[string]string{"app": "web"})
	serveName(t, web, 8080)
	vip := c.service("web").ip(4)
	c.eventually("the service leads to its pod", func() error {
		_, err := ask(c.a1.Namespace, "tcp", netip.AddrPortFrom(vip, 80), "hello")
		return err
	})
	for _, tt := range []struct {
		name, to string
		args     []string
		verdict  string
		pod      string
		node     string
		reason   string
		object   string // named by some step
	}{
		{name: "pod on the node", to: c.a2.IP(4).String(), verdict: "delivered", pod: "default/a2", node: "a", object: "Pod default/a2"},
		{name: "pod of the other node", to: c.b1.IP(6).String(), verdict: "delivered", pod: "default/b1", node: "b", object: "Node b"},
		{name: "service", to: netip.AddrPortFrom(vip, 80).String(), verdict: "delivered", pod: "default/web", node: "b", object: "Service default/web:http"},
		{name: "service without endpoints", to: c.service("empty").ip(4).String() + ":80", verdict: "refused", node: "a", reason: "no-endpoint", object: "Service default/empty"},
		{name: "service's unused port", to: netip.AddrPortFrom(vip, 81).String(), args: []string{"--proto", "udp"}, verdict: "refused", node: "a", reason: "no-service"},
		{name: "ping of a service", to: vip.String(), verdict: "answered", node: "a"},
		{name: "the world", to: "203.0.113.9:443", verdict: "outside", node: "a"},
		{name: "metadata", to: "169.254.169.254:80", verdict: "dropped", reason: "martian-target"},
		{name: "nobody", to: "10.244.200.200:80", verdict: "refused", node: "a", reason: "no-route"},
	} {
		tr := traceFrom(t, a, "a1", tt.to, tt.args...)
		o := tr.Outcome
		if o.Verdict != tt.verdict || o.Pod != tt.pod || o.Node != tt.node || o.Reason != tt.reason {
			t.Errorf("%s: want %s to %s on %s, reason %q; got\n%v", tt.name, tt.verdict, tt.pod, tt.node, tt.reason, tr)
		}
		named := tt.object == ""
		for _, s := range tr.Steps {
			named = named || s.Object == tt.object
		}
		if !named {
			t.Errorf("%s: want %q named; got\n%v", tt.name, tt.object, tr)
		}
	}

	// Nothing was sent or entered.
	var flows []struct{ Source string }
	get(t, a, "flows", &flows)
	for _, f := range flows {
		if strings.HasSuffix(f.Source, ":61000") {
			t.Errorf("a trace entered a connection: %+v", f)
		}
	}
	// A pod of another node can't be traced from here.
	if out, err := a.Vswitch(t.Context(), "", "trace", "--from", "default/b1", "--to", "10.0.0.1"); err == nil || !strings.Contains(err.Error()+string(out), "not on node a") {
		t.Errorf("a pod of the other node: %v %s", err, out)
	}
}
