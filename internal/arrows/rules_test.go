package arrows

import (
	"bytes"
	"go/format"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// A pattern is a package path below the module, or one with /... for it and
// all below it.

// never lists what a package must not reach, neither itself nor through others.
var never = []struct {
	from   string
	to     []string
	except []string
	why    string
}{
	{
		from: "vswitch/...", to: []string{"tap/...", "tunnel/...", "control/...", "cni/...", "bench/...", "internal/node/..."},
		why: "the switch knows queues, not what is behind them, and is driven, not driving",
	},
	{
		from: "vswitch", to: []string{"vswitch/gateway/..."},
		why: "the switch declares the Services it needs; the gateway satisfies it",
	},
	{
		from: "control/...", to: []string{"vswitch/...", "tap/...", "tunnel/...", "cni/...", "bench/...", "internal/node/..."},
		except: []string{"vswitch/frame", "vswitch/drop"},
		why:    "the control plane never touches a packet: it declares the Dataplane it drives (frame is for its MAC type)",
	},
	{
		from: "tap/...", to: []string{"vswitch", "vswitch/fib", "vswitch/flow", "vswitch/gateway/...", "tunnel/...", "control/...", "cni/..."},
		why: "a queue moves frames and decides nothing",
	},
	{
		from: "tunnel/...", to: []string{"vswitch", "vswitch/fib", "vswitch/flow", "vswitch/gateway/...", "tap/...", "control/...", "cni/..."},
		why: "a queue moves frames and decides nothing",
	},
	{
		from: "vswitch/fib", to: []string{"vswitch", "vswitch/flow", "vswitch/frame", "vswitch/gateway/..."},
		why: "a leaf",
	},
	{
		from: "vswitch/flow", to: []string{"vswitch", "vswitch/fib", "vswitch/frame", "vswitch/gateway/..."},
		why: "a leaf",
	},
	{
		from: "vswitch/affinity", to: []string{"vswitch", "vswitch/fib", "vswitch/frame", "vswitch/gateway/..."},
		why: "likewise; it knows no service",
	},
	{
		from: "internal/wire", to: []string{"..."}, except: []string{"vswitch/drop"},
		why: "headers are pure",
	},
	{
		from: "internal/offload", to: []string{"..."}, except: []string{"vswitch/frame", "vswitch/drop", "internal/wire"},
		why: "offload arithmetic is pure",
	},
}

// only lists all of ours that a package may import itself.
var only = []struct {
	from string
	to   []string
	why  string
}{
	{from: "vswitch/drop", why: "everything may name a reason"},
	{from: "vswitch/frame", to: []string{"vswitch/drop"}, why: "the unit that everything moves"},
	{from: "internal/account", why: "daemon, clients and plugin find each other by it"},
	{from: "control/kube", to: []string{"control"}, why: "it brings objects and writes a node's facts: what they mean is control's"},
	{from: "internal/unixcall", why: "a leaf, which the plugin imports"},
	{from: "control/api", to: []string{"internal/account", "internal/unixcall"}, why: "the plugin imports it"},
	{from: "control/api/v1", to: []string{"control/api"}, why: "generated"},
	{
		from: "cni", to: []string{"control/api", "tap", "internal/fdpass", "internal/netif", "vswitch/frame", "cni/..."},
		why: "the plugin only asks the daemon and sets up a namespace",
	},
	{from: "internal/share", why: "arithmetic"},
	{from: "internal/lasting", why: "memory knows nothing of what lies in it"},
	{from: "internal/uptime", why: "a clock"},
	{from: "internal/upkeep", why: "it knows none of what it looks after: owners say how to look and how to mend"},
	{from: "internal/dns", to: []string{"internal/share"}, why: "from message to message: whoever owns a socket calls it, whoever knows services is its Zone"},
	{
		from: "internal/netif", to: []string{"control/api", "tap", "internal/fdpass"},
		why: "it does what needs privilege in a namespace, and no more",
	},
	{from: "internal/hostnet", to: []string{"control/api", "tap", "internal/netif"}, why: "likewise"},
	{from: "internal/userns", why: "a leaf"},
	{from: "internal/sockdiag", why: "a leaf"},
	{from: "internal/cgroup", why: "a leaf"},
	{from: "internal/rootless/copyup", why: "a leaf"},
	{from: "internal/rootless/slirp", to: []string{"internal/rootless/plan", "vswitch/frame"}, why: "two languages, which it speaks and nothing else"},
	{from: "internal/rootless/plan", to: []string{"vswitch/frame"}, why: "what several processes are told"},
	{
		from: "internal/rootless/inside", to: []string{"internal/rootless/plan", "internal/rootless/copyup", "internal/netif", "internal/sockdiag", "internal/fdpass", "internal/resident", "tap", "vswitch"},
		why: "it does what needs privilege in the namespace, and no more",
	},
	{from: "internal/health", why: "it asks whoever starts it"},
	{from: "internal/confine", why: "what a process gives up is between it and the kernel"},
	{from: "internal/traffic", why: "it measures the product from outside"},
	{from: "internal/lab/...", to: []string{"internal/lab/...", "internal/userns", "internal/cgroup"}, why: "it drives the product through its binaries (userns and cgroup know the kernel)"},
	{from: "internal/demo", to: []string{"internal/lab", "internal/traffic", "internal/userns"}, why: "it drives the product through its binaries"},
}

// importers lists who alone may import a package.
var importers = []struct {
	to   string
	from []string
	why  string
}{
	{to: "cmd/...", why: "a main is nobody's library"},
	{to: "internal/node/...", from: []string{"cmd/vswitch", "internal/node/..."}, why: "the wiring is the daemon's"},
	{to: "internal/rootless/dataplane", from: []string{"cmd/vswitch", "internal/rootless"}, why: "the wiring is its process's"},
	{to: "internal/rootless/inside", from: []string{"cmd/vswitch", "internal/rootless"}, why: "it runs where it has privilege"},
	{to: "internal/demo", from: []string{"cmd/vswitch-demo"}, why: "it is the demo's"},
	{to: "bench/...", from: []string{"cmd/vswitch-bench", "bench/..."}, why: "it is the benchmark's"},
	{to: "cni/...", from: []string{"cmd/vswitch-cni", "cni/..."}, why: "it is the plugin's"},
	{to: "internal/hostnet", from: []string{"cmd/vswitch", "internal/attend"}, why: "it is the command line's"},
	{to: "internal/health", from: []string{"internal/node"}, why: "it is the daemon's"},
	{to: "internal/metrics", from: []string{"internal/node"}, why: "counters are counted where they are; it only reads them"},
	{to: "internal/attend", from: []string{"cmd/vswitch"}, why: "likewise"},
	{to: "internal/cniinstall", from: []string{"cmd/vswitch", "internal/attend"}, why: "likewise"},
	{to: "internal/netif", from: []string{"cni/...", "internal/hostnet", "internal/attend", "internal/rootless/inside"}, why: "the daemon never configures a namespace"},
	{to: "internal/lab/...", from: []string{"internal/lab/...", "internal/demo", "bench/...", "cmd/vswitch-demo", "cmd/vswitch-bench"}, why: "the product never builds labs"},
	{to: "internal/traffic", from: []string{"internal/demo", "bench/...", "cmd/vswitch-demo", "cmd/vswitch-bench"}, why: "the product makes no test traffic"},
	{to: "vswitch/queuetest", why: "for tests"},
	{to: "internal/wiretest", why: "for tests"},
	{to: "internal/offload/offloadtest", why: "for tests"},
	{to: "internal/lasting/lastingtest", why: "for tests"},
	{to: "tunnel/netnstest", why: "for tests"},
	{to: "control/kube/kubetest", why: "for tests"},
}

func match(pattern, p string) bool {
	if pattern == "..." {
		return true
	}
	if root, ok := strings.CutSuffix(pattern, "/..."); ok {
		return p == root || strings.HasPrefix(p, root+"/")
	}
	return p == pattern
}

func matchAny(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return match(pattern, p) })
}

// isTestHelper: packages of test doubles are imported by tests alone, and may
// import what tests may.
func isTestHelper(p string) bool { return strings.HasSuffix(path.Base(p), "test") }

// reach calls f for every package that from leads to, with the way there.
func reach(pkgs map[string]*pkg, from string, f func(to string, way []string)) {
	seen := map[string]bool{from: true}
	var walk func(p string, way []string)
	walk = func(p string, way []string) {
		if pkgs[p] == nil {
			return
		}
		for to := range pkgs[p].imports {
			if !seen[to] {
				seen[to] = true
				w := append(slices.Clone(way), to)
				f(to, w)
				walk(to, w)
			}
		}
	}
	walk(from, []string{from})
}

func TestArrowsPointDown(t *testing.T) {
	pkgs := packages(t)
	for _, r := range never {
		found := false
		for p := range pkgs {
			if !match(r.from, p) || isTestHelper(p) {
				continue
			}
			found = true
			reach(pkgs, p, func(to string, way []string) {
				if matchAny(r.to, to) && !matchAny(r.except, to) {
					t.Errorf("%s must not reach %s (%s), but %s", p, to, r.why, strings.Join(way, " -> "))
				}
			})
		}
		if !found {
			t.Logf("no package matches %q yet", r.from)
		}
	}
	for _, r := range only {
		for p, pk := range pkgs {
			if !match(r.from, p) || isTestHelper(p) {
				continue
			}
			for to, by := range pk.imports {
				if !matchAny(r.to, to) {
					t.Errorf("%s may import only %v of ours (%s); %v import %s", p, r.to, r.why, by, to)
				}
			}
		}
	}
	for _, r := range importers {
		for p, pk := range pkgs {
			for to, by := range pk.imports {
				if match(r.to, to) && !matchAny(r.from, p) && !isTestHelper(p) {
					t.Errorf("only %v may import %s (%s); %v do", r.from, to, r.why, by)
				}
			}
		}
	}
}

func TestPlatformPackagesStayWhereTheyBelong(t *testing.T) {
	for p, pk := range packages(t) {
		for imported, by := range pk.std {
			switch {
			case strings.HasPrefix(imported, "github.com/vishvananda/") && !matchAny([]string{"cni/...", "internal/netif", "internal/hostnet", "internal/rootless/inside", "internal/lab/...", "bench/..."}, p) && !isTestHelper(p):
				t.Errorf("%v: the daemon never configures a namespace, so it has no use for %s", by, imported)
			case strings.HasPrefix(imported, "gvisor.dev/") && !match("vswitch/gateway/...", p):
				t.Errorf("%v: netstack is the gateway's, not %s's", by, p)
			case imported == "testing" && !isTestHelper(p):
				t.Errorf("%v: the product does not import testing", by)
			case imported == "C":
				t.Errorf("%v: binaries are built without cgo", by)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for p, pk := range packages(t) {
		if pk.onlyTests {
			continue
		}
		name := "Package " + pk.name + " "
		if pk.name == "main" {
			name = "Command " + path.Base(p) + " "
		}
		if !strings.HasPrefix(pk.doc, name) && !isGeneratedPackage(t, p) {
			t.Errorf("%s: its doc comment must begin with %q; it begins with %q", p, name, firstLine(pk.doc))
		}
		if strings.Count("\n"+pk.doc, "\n"+name) > 1 {
			t.Errorf("%s: more than one file has the package's doc comment", p)
		}
		if slices.Contains([]string{"util", "utils", "common", "helpers", "types", "misc"}, path.Base(p)) {
			t.Errorf("%s: name the idea", p)
		}
	}
}

func isGeneratedPackage(t *testing.T, p string) bool {
	for _, f := range files(t) {
		if path.Dir(f.name) == p && !f.isTest() && !f.isGenerated() {
			return false
		}
	}
	return true
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// Whoever reads the tree for the first time finds each package in the list.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	// a/{b,c} stands for a/b and a/c.
	list := regexp.MustCompile(`([a-z/]+)\{([^}]+)\}`).ReplaceAllStringFunc(string(text), func(braces string) string {
		dir, names, _ := strings.Cut(strings.TrimSuffix(braces, "}"), "{")
		return dir + strings.ReplaceAll(names, ",", " "+dir)
	})
	words := map[string]bool{}
	for _, w := range strings.FieldsFunc(list, func(r rune) bool {
		return !strings.ContainsRune("/-", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) {
		words[w] = true
	}
	seen := map[string]bool{}
	for _, f := range files(t) {
		pkg := path.Dir(f.name)
		if seen[pkg] || strings.HasSuffix(pkg, "test") && pkg != "internal/wiretest" {
			continue
		}
		seen[pkg] = true
		if !words[pkg] {
			t.Errorf("docs/architecture.md says nothing of %s", pkg)
		}
	}
}

func TestFormattedByGofmt(t *testing.T) {
	for _, f := range files(t) {
		want, err := format.Source(f.src)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
		} else if !bytes.Equal(f.src, want) {
			t.Errorf("%s: not formatted: make fmt", f.name)
		}
	}
}
