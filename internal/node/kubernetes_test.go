package node

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "vswitch/control/api/v1"
	"vswitch/control/kube/kubetest"
)

func putNode(api *kubetest.Server, cidr string) {
	spec := map[string]any{}
	if cidr != "" {
		spec["podCIDRs"] = []string{cidr}
	}
	api.Put("nodes", map[string]any{"metadata": map[string]any{"name": "a"}, "spec": spec})
}

// A node of Kubernetes' takes no pods before it has a pod CIDR; once it had one it
// starts, forwards and takes pods without an API server (case 55); and with other pod
// CIDRs it ends, saying why.
func TestANodeOfKubernetes(t *testing.T) {
	api := kubetest.New(t)
	cfg := newConfig(t)
	cfg.Store.Kubernetes, cfg.Store.APIServer = true, api.URL()
	putNode(api, "")
	d := start(t, cfg)
	eventually(t, "it says what it waits for", func() bool { return strings.Contains(d.log.String(), "--allocate-node-cidrs") })
	c := d.client(t)
	if _, err := c.AddPod(t.Context(), addRequest("c1")); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("add without pod CIDR: %v", err)
	}
	putNode(api, "10.244.3.0/24")
	if line := d.waitReady(t); !strings.Contains(line, "10.244.3.0/24") {
		t.Errorf("ready: %q", line)
	}
	if r, err := c.AddPod(t.Context(), addRequest("c1")); err != nil || r.Ips[0] != "10.244.3.2/32" {
		t.Errorf("add: %v, %v", r, err)
	}
	api.Put("services", map[string]any{
		"metadata": map[string]any{"namespace": "default", "name": "web"},
		"spec": map[string]any{
			"clusterIP": "10.96.0.10", "clusterIPs": []string{"10.96.0.10"}, "selector": map[string]any{"app": "web"}, "ports": []any{map[string]any{"port": 80}},
		},
	})
	slice := map[string]any{
		"metadata":    map[string]any{"namespace": "default", "name": "web-1", "labels": map[string]any{"kubernetes.io/service-name": "web"}},
		"addressType": "IPv4", "ports": []any{map[string]any{"port": 8080}},
		"endpoints": []any{map[string]any{"addresses": []string{"10.244.3.2"}}, map[string]any{"addresses": []string{"127.0.0.1"}}},
	}
	api.Put("endpointslices", slice)
	endpoints := func(c *apiv1.Client) string {
		all := rows(t, c, "endpoints")
		if len(all) != 1 || all[0]["name"] != "web" {
			return fmt.Sprint(all)
		}
		return fmt.Sprint(all[0]["endpoints"])
	}
	eventually(t, "the endpoint is known", func() bool { return strings.Contains(endpoints(c), "10.244.3.2") })
	eventually(t, "an endpoint on loopback is an Event", func() bool { // case 32
		all := api.All("events")
		return len(all) == 1 && strings.Contains(fmt.Sprint(all[0]["message"]), `"127.0.0.1" is a loopback address`)
	})
	if _, err := c.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(web)}}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "kubectl") {
		t.Errorf("apply: %v", err)
	}
	eventually(t, "the last good state is on disk", func() bool {
		return bytes.Contains(lastGood(t, cfg), []byte(`"web-1"`))
	})
	c.Close()
	d.end(t)

	api.Stop()
	d = start(t, cfg)
	d.waitReady(t)
	c = d.client(t)
	if got := endpoints(c); !strings.Contains(got, "10.244.3.2") {
		t.Errorf("without API server: endpoints %v", got)
	}
	if r, err := c.AddPod(t.Context(), addRequest("c2")); err != nil || r.Ips[0] != "10.244.3.3/32" {
		t.Errorf("without API server: add: %v, %v", r, err)
	}
	eventually(t, "it is missed", func() bool { return strings.Contains(d.log.String(), "API server is away") })
	api.Start()
	eventually(t, "it is heard again", func() bool { return strings.Contains(d.log.String(), "API server is back") })

	api.Delete("nodes", "", "a")
	putNode(api, "10.244.9.0/24")
	if err := d.wait(t); err == nil || !strings.Contains(err.Error(), "10.244.9.0/24") || !strings.Contains(err.Error(), "drain") {
		t.Errorf("with other pod CIDRs: %v", err)
	}
	c.Close()
}
