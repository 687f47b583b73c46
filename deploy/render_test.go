package deploy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	vconfig "vswitch/internal/config"
)

// object is one document of a manifest.
type object map[string]any

func (o object) id() string {
	meta, _ := o["metadata"].(map[string]any)
	return fmt.Sprint(o["kind"], " ", meta["namespace"], "/", meta["name"])
}

// documents are the objects of a file of YAML documents.
func documents(t *testing.T, from string, text []byte) []object {
	t.Helper()
	var all []object
	for _, doc := range strings.Split("\n"+string(text), "\n---\n") {
		var o object
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatalf("%s: %v\n%s", from, err, doc)
		}
		if len(o) > 0 {
			all = append(all, o)
		}
	}
	return all
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// byID tells objects by what they are called; two of one name are an error.
func byID(t *testing.T, all []object) map[string]object {
	t.Helper()
	m := map[string]object{}
	for _, o := range all {
		if m[o.id()] != nil {
			t.Errorf("%s is there twice", o.id())
		}
		m[o.id()] = o
	}
	return m
}

// kustomization is what `kubectl apply -k` makes of this directory, as far as the file
// asks for: resources, and images by name.
func kustomization(t *testing.T) map[string]object {
	t.Helper()
	var k struct {
		APIVersion, Kind string
		Resources        []string
		Images           []struct{ Name, NewName, NewTag string }
	}
	if err := yaml.UnmarshalStrict(readFile(t, "kustomization.yaml"), &k); err != nil {
		t.Fatal(err)
	}
	var all []object
	for _, r := range k.Resources {
		all = append(all, documents(t, r, readFile(t, r))...)
	}
	for _, o := range all {
		for _, c := range containers(o) {
			for _, i := range k.Images {
				if c["image"] == i.Name {
					c["image"] = i.NewName + ":" + i.NewTag
				}
			}
		}
	}
	return byID(t, all)
}

// containers are those of a pod template.
func containers(o object) []map[string]any {
	spec, _ := o["spec"].(map[string]any)
	tpl, _ := spec["template"].(map[string]any)
	pod, _ := tpl["spec"].(map[string]any)
	var out []map[string]any
	for _, key := range []string{"initContainers", "containers"} {
		list, _ := pod[key].([]any)
		for _, c := range list {
			out = append(out, c.(map[string]any))
		}
	}
	return out
}

// chart renders the Helm chart with its own values. The templates use no more of Helm
// than these three functions, which Helm has by the same names.
func chart(t *testing.T) map[string]object {
	t.Helper()
	toYAML := func(v any) (string, error) {
		text, err := yaml.Marshal(v)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	functions := template.FuncMap{
		"toYaml": toYAML,
		"nindent": func(n int, s string) string {
			pad := "\n" + strings.Repeat(" ", n)
			return pad + strings.ReplaceAll(s, "\n", pad)
		},
		"sha256sum": func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) },
	}
	const dir = "helm/vswitch"
	var values map[string]any
	if err := yaml.UnmarshalStrict(readFile(t, dir+"/values.yaml"), &values); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/templates/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v: %v", files, err)
	}
	var all []object
	for _, f := range files {
		tpl, err := template.New(f).Option("missingkey=error").Funcs(functions).Parse(string(readFile(t, f)))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := tpl.Execute(&out, map[string]any{"Values": values}); err != nil {
			t.Fatal(err)
		}
		all = append(all, documents(t, f, out.Bytes())...)
	}
	return byID(t, all)
}

// TestChartRendersWhatTheKustomizationHas: two ways to install, one result.
func TestChartRendersWhatTheKustomizationHas(t *testing.T) {
	want, got := kustomization(t), chart(t)
	// The chart's own: it makes new pods of a new configuration by itself.
	ds := got["DaemonSet vswitch-system/vswitch"]["spec"].(map[string]any)["template"].(map[string]any)["metadata"].(map[string]any)
	if _, ok := ds["annotations"].(map[string]any)["checksum/config"]; !ok {
		t.Error("the chart's pods have no checksum of their configuration")
	}
	delete(ds, "annotations")
	// Text, with comments in one of them.
	const config = "ConfigMap vswitch-system/vswitch"
	if a, b := settings(t, want[config]), settings(t, got[config]); !reflect.DeepEqual(a, b) {
		t.Errorf("settings: kustomization %v, chart %v", a, b)
	}
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	vconfig.NewLoader(flags)
	for key := range settings(t, want[config]) {
		if flags.Lookup(key) == nil {
			t.Errorf("setting %q is no flag of vswitch run", key)
		}
	}
	delete(want, config)
	delete(got, config)
	for id, w := range want {
		if !reflect.DeepEqual(got[id], w) {
			a, _ := yaml.Marshal(w)
			b, _ := yaml.Marshal(got[id])
			t.Errorf("%s differs:\nkustomization:\n%s\nchart:\n%s", id, a, b)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d objects in the kustomization, %d in the chart", len(want), len(got))
	}
}

// settings are the keys of the daemon's configuration file.
func settings(t *testing.T, configMap object) map[string]any {
	t.Helper()
	data, _ := configMap["data"].(map[string]any)
	var s map[string]any
	if err := yaml.UnmarshalStrict([]byte(data["config.yaml"].(string)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestTheDaemonIsGivenNoPrivilege holds the DaemonSet to what docs/operations.md says
// of it.
func TestTheDaemonIsGivenNoPrivilege(t *testing.T) {
	ds := kustomization(t)["DaemonSet vswitch-system/vswitch"]
	for _, c := range containers(ds) {
		if c["ports"] != nil {
			t.Errorf("%v declares ports: on the host's network a second pod could not be there at once", c["name"])
		}
		sc := c["securityContext"].(map[string]any)
		if sc["readOnlyRootFilesystem"] != true {
			t.Errorf("%v: its root can be written to", c["name"])
		}
		if c["name"] != "vswitch" {
			continue
		}
		caps := sc["capabilities"].(map[string]any)
		if sc["allowPrivilegeEscalation"] != false || sc["privileged"] != nil ||
			!reflect.DeepEqual(caps["drop"], []any{"ALL"}) || !reflect.DeepEqual(caps["add"], []any{"NET_BIND_SERVICE"}) {
			t.Errorf("the daemon has %v", sc)
		}
	}
}

// TestRBACIsWhatIsDocumented: docs/kubernetes.md says what each right is for, so none is
// there that it does not name, and none is missing.
func TestRBACIsWhatIsDocumented(t *testing.T) {
	var want, got []string
	row := regexp.MustCompile("(?m)^\\| `([a-z/]+)`(?: \\(([a-z0-9.]+)\\))? \\| ([a-z, ]+) \\|")
	for _, m := range row.FindAllStringSubmatch(string(readFile(t, "../docs/kubernetes.md")), -1) {
		for _, verb := range strings.Split(m[3], ", ") {
			want = append(want, strings.TrimSpace(m[2]+" "+m[1]+" "+verb))
		}
	}
	role := kustomization(t)["ClusterRole <nil>/vswitch"]
	for _, r := range role["rules"].([]any) {
		rule := r.(map[string]any)
		for _, group := range rule["apiGroups"].([]any) {
			for _, resource := range rule["resources"].([]any) {
				for _, verb := range rule["verbs"].([]any) {
					got = append(got, strings.TrimSpace(fmt.Sprint(group, " ", resource, " ", verb)))
				}
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("the role has\n%s\ndocs/kubernetes.md says\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
