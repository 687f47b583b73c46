package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	apiv1 "vswitch/control/api/v1"
)

const balanced = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"type":"LoadBalancer","externalTrafficPolicy":"Local",` +
	`"externalIPs":["203.0.113.1"],"ports":[{"port":80}]}}`

// TestALoadBalancerGetsAnAddressOfItsOwn follows one from apply to the routes, through
// an update, a restart and its end.
func TestALoadBalancerGetsAnAddressOfItsOwn(t *testing.T) {
	cfg := newConfig(t)
	cfg.LBCIDR = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	d := start(t, cfg)
	d.waitReady(t)
	c := d.client(t)
	apply := func(doc string) {
		t.Helper()
		if _, err := c.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(doc)}}); err != nil {
			t.Fatal(err)
		}
	}
	// service is its row: the address that its status says, and the rest as text.
	service := func() (address, all string) {
		for _, r := range rows(t, c, "services") {
			all = fmt.Sprint(r)
			if _, rest, ok := strings.Cut(all, "ingress:[map[ip:"); ok {
				address, _, _ = strings.Cut(rest, " ")
			}
		}
		return strings.TrimSuffix(address, "]"), all
	}
	leads := func(address string) (kind string) {
		for _, r := range rows(t, c, "routes") {
			if r["destination"] == address+"/32" {
				kind = r["kind"].(string)
			}
		}
		return kind
	}
	apply(balanced)
	var address, row string
	eventually(t, "it has an address that leads to the gateway", func() bool {
		address, row = service()
		return strings.HasPrefix(address, "198.51.100.") && leads(address) == "vip"
	})
	if !strings.Contains(row, "externalAddresses:["+address+"]") || !strings.Contains(row, "--allow-external-ips") || leads("203.0.113.1") != "" {
		t.Errorf("service %s: want the load balancer's address alone, and a problem that names the flag", row)
	}
	apply(strings.Replace(balanced, `"port":80`, `"port":81`, 1))
	eventually(t, "the update is known", func() bool { _, row := service(); return strings.Contains(row, "port:81") })
	if again, _ := service(); again != address {
		t.Errorf("after an update it has %s, want %s", again, address)
	}
	second := strings.Replace(balanced, `"web"`, `"second"`, 1)
	apply(second)
	eventually(t, "another one has an address", func() bool { return len(outsideRoutes(t, c)) == 2 })
	if _, err := c.Delete(t.Context(), &apiv1.DeleteRequest{Kind: "service", Namespace: "default", Name: "second"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "and has it no longer", func() bool { return len(outsideRoutes(t, c)) == 1 })
	c.Close()
	d.end(t)

	cfg.LBCIDR = nil
	d = start(t, cfg)
	d.waitReady(t)
	c = d.client(t)
	eventually(t, "it has its address still", func() bool { again, _ := service(); return again == address && leads(address) == "vip" })
	c.Close()
	d.end(t)
}

// outsideRoutes are the addresses of load balancers that lead to the gateway.
func outsideRoutes(t *testing.T, c *apiv1.Client) (out []string) {
	t.Helper()
	for _, r := range rows(t, c, "routes") {
		if to := r["destination"].(string); r["kind"] == "vip" && strings.HasPrefix(to, "198.51.100.") {
			out = append(out, to)
		}
	}
	return out
}
