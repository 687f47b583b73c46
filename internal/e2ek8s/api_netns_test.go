package e2ek8s

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/internal/lab"
	"vswitch/internal/lab/labtest"
)

// kubectl on the control plane's machine drives the cluster as users know it.
func testKubectl(t *testing.T, r *rig) {
	var version struct {
		ClientVersion, ServerVersion struct{ GitVersion string }
	}
	if err := json.Unmarshal([]byte(r.kubectl(t, "version", "-o", "json")), &version); err != nil {
		t.Fatal(err)
	}
	if v := version.ServerVersion.GitVersion; v == "" || v != version.ClientVersion.GitVersion {
		t.Errorf("the API server says that it is %q, kubectl that it is %q", v, version.ClientVersion.GitVersion)
	}
	for _, n := range r.nodes {
		eventually(t, n.Host+" is ready", func() error {
			if out := r.kubectl(t, "get", "node", n.Host, "--no-headers"); !strings.Contains(out, " Ready ") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}
	ns := r.namespace(t, "kubectl")
	r.apply(t, ns, deployment("web", 2)+webService)
	r.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	if out := r.kubectl(t, "get", "endpointslices", "-n", ns, "-o", "name"); len(strings.Fields(out)) != 2 {
		t.Errorf("slices of a service of two families: %s", out)
	}
	r.kubectl(t, "rollout", "restart", "-n", ns, "deployment/web")
	r.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	r.kubectl(t, "delete", "deployment", "web", "-n", ns)
}

// What Helm makes of the chart the API server takes, and finds no field that it doesn't
// know. That it is what the kustomization has, which runs here, the tests of deploy say.
func testChart(t *testing.T, r *rig) {
	helms, err := filepath.Glob(filepath.Join(labtest.BinDir(t), "k8s", "helm-*"))
	if err != nil || len(helms) != 1 {
		t.Fatalf("%v, %v: want the one that make e2e-k8s builds", helms, err)
	}
	chart, err := filepath.Abs(filepath.Join("..", "..", "deploy", "helm", "vswitch"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	objects, err := r.Control.Exec(ctx, lab.Command{Name: "helm", Path: helms[0], Args: []string{"template", "vswitch", chart}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.Kubectl(ctx, string(objects), "apply", "--dry-run=server", "--validate=strict", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"namespace/", "serviceaccount/", "clusterrole.", "clusterrolebinding.", "configmap/", "daemonset."} {
		if !strings.Contains("\n"+string(out), "\n"+want) {
			t.Errorf("no %s was taken: %s", want, out)
		}
	}
}

// apiClients is a pod with the right to list pods of its namespace, on each node.
const apiClients = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: default}]
---`

// An unmodified program in a pod reaches the API server, which is no pod, by the
// service kubernetes and with the pod's own service account.
func testAPIFromPod(t *testing.T, r *rig) {
	ns := r.namespace(t, "api")
	r.apply(t, ns, apiClients+deployment("client", 3))
	const account = "/run/secrets/kubernetes.io/serviceaccount/"
	for _, p := range r.pods(t, ns, "client", 3) {
		t.Run("on "+p.Spec.NodeName, func(t *testing.T) {
			for name, args := range map[string][]string{
				"kubectl by environment": {"kubectl", "get", "pods", "-o", "name"},
				"kubectl by name":        {"sh", "-c", "exec kubectl --server https://kubernetes.default --certificate-authority " + account + "ca.crt --token $(cat " + account + "token) get pods -o name"},
				"curl by name":           {"sh", "-c", "exec curl -sS --fail --max-time 10 --cacert " + account + "ca.crt -H \"Authorization: Bearer $(cat " + account + "token)\" https://kubernetes.default.svc/api/v1/namespaces/" + ns + "/pods"},
			} {
				eventually(t, name, func() error { return r.says(t, p, p.Name, args...) })
			}
			// Its rights end with its namespace.
			if err := r.says(t, p, "", "kubectl", "get", "pods", "-n", "kube-system"); err == nil || !strings.Contains(err.Error(), "system:serviceaccount:"+ns+":default") {
				t.Errorf("pods of another namespace: %v, want it forbidden for the pod's account", err)
			}
		})
	}
}

// says runs a command in a pod and wants a word in what it writes.
func (r *rig) says(t *testing.T, p *corev1.Pod, word string, args ...string) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := r.Exec(ctx, p, args...)
	if err == nil && !strings.Contains(string(out), word) {
		err = fmt.Errorf("%q, want a word of %s", out, word)
	}
	return err
}

// A service that asks for what there is not is told so where its owner looks, once
// for all nodes, and works as far as it can.
func testEvents(t *testing.T, r *rig) {
	ns := r.namespace(t, "events")
	r.apply(t, ns, deployment("web", 1)+strings.Replace(webService, "metadata: {name: web}", `metadata: {name: web, annotations: {vswitch/mode: magic}}`, 1))
	eventually(t, "the owner is told", func() error {
		list, err := r.Client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=Service,involvedObject.name=web"})
		if err != nil {
			return err
		}
		if n := len(list.Items); n != 1 {
			return fmt.Errorf("%d events, want one", n)
		}
		if e := list.Items[0]; e.Type != corev1.EventTypeWarning || !strings.Contains(e.Message, "vswitch/mode") {
			return fmt.Errorf("%s: %s", e.Type, e.Message)
		}
		return nil
	})
}
