package cni

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containernetworking/cni/pkg/skel"
)

func TestPodComesFromTheArguments(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		want       string // namespace/name uid; empty: code 4
	}{
		{"none", "", "default/c1 "},
		{"all of Kubernetes'", "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=a.b-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1", "web/a.b-0 u-1"},
		{"podman's, with names of its own kind", "IgnoreUnknown=1;K8S_POD_NAMESPACE=My_Pod;K8S_POD_NAME=My_Pod", "My_Pod/My_Pod "},
		{"empty values", "K8S_POD_NAMESPACE=;K8S_POD_NAME=", "default/c1 "},
		{"an unknown key, to be ignored", "FOO=bar;IgnoreUnknown=TRUE", "default/c1 "},
		{"an unknown key", "FOO=bar", ""},
		{"an unknown key, not to be ignored", "FOO=bar;IgnoreUnknown=0", ""},
		{"a bad boolean", "IgnoreUnknown=perhaps", ""},
		{"no pair", "K8S_POD_NAME", ""},
		{"no key", "=x", ""},
		{"two signs", "K8S_POD_NAME=a=b", ""},
		{"a trailing semicolon", "K8S_POD_NAME=a;", ""},
		{"a key twice", "K8S_POD_NAME=a;K8S_POD_NAME=b", ""},
		{"a path for a name", "K8S_POD_NAME=../../etc", ""},
		{"a name of 253 bytes", "K8S_POD_NAME=" + strings.Repeat("a", 253), "default/" + strings.Repeat("a", 253) + " "},
		{"a name of one", "K8S_POD_NAME=7", "default/7 "},
		{"a name of 254 bytes", "K8S_POD_NAME=" + strings.Repeat("a", 254), ""},
		{"a name that ends in a dot", "K8S_POD_NAME=web.", ""},
		{"a name that begins with a hyphen", "K8S_POD_NAME=-web", ""},
		{"a name of spaces", "K8S_POD_NAME=a b", ""},
		{"a namespace in other letters", "K8S_POD_NAMESPACE=\u043f\u043e\u0434", ""},
		{"a name that is too long", "K8S_POD_NAME=" + strings.Repeat("a", 254), ""},
		{"the longest name", "K8S_POD_NAME=" + strings.Repeat("a", 253), "default/" + strings.Repeat("a", 253) + " "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod, err := parsePod(tt.args, "c1")
			if tt.want == "" {
				if codeOf(t, err) != 4 {
					t.Fatalf("got %v, %v, want code 4", pod, err)
				}
				if !strings.Contains(err.Error(), "CNI_ARGS") {
					t.Errorf("%q doesn't name the variable", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := pod.Namespace + "/" + pod.Name + " " + pod.UID; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestInterfaceNamesTheKernelTakesInAnotherSense(t *testing.T) {
	for name, ok := range map[string]bool{
		"eth0": true, "net1.5": true, "a_b-c": true,
		"lo": false, "all": false, "default": false,
		"eth%d": false, "et h": false, "eth\x00": false, "eth\u00e9": false, "eth\xff": false, "\u200b": false,
	} {
		if err := checkIfname(name); (err == nil) != ok {
			t.Errorf("%q: %v, want ok = %v", name, err, ok)
		} else if err != nil && codeOf(t, err) != 4 {
			t.Errorf("%q: code %d, want 4", name, codeOf(t, err))
		}
	}
}

func TestNetnsHasToBeAPath(t *testing.T) {
	for path, ok := range map[string]bool{
		"/run/netns/a": true, "/proc/5/ns/net": true,
		"a": false, "../run/netns/a": false, "/run/\xff": false,
	} {
		_, err := parseAttachment(&skel.CmdArgs{ContainerID: "c", IfName: "eth0", Netns: path}, &conf{})
		if (err == nil) != ok || codeOf(t, err) != map[bool]uint{true: 0, false: 4}[ok] {
			t.Errorf("%q: %v, want ok = %v", path, err, ok)
		}
	}
}

func FuzzCNIArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=a.b-0;K8S_POD_UID=u-1")
	f.Add("IgnoreUnknown=;;=;K8S_POD_NAME==")
	f.Add("\xff=\xff")
	f.Fuzz(func(t *testing.T, args string) {
		pod, err := parsePod(args, "container")
		if err != nil {
			if codeOf(t, err) != 4 {
				t.Errorf("%q: %v, want code 4", args, err)
			}
			return
		}
		for _, s := range []string{pod.Namespace, pod.Name, pod.UID} {
			if !utf8.ValidString(s) || len(s) > 253 || strings.ContainsAny(s, "/ \x00=;") {
				t.Errorf("%q gave %q", args, s)
			}
		}
		if pod.Namespace == "" || pod.Name == "" {
			t.Errorf("%q gave the pod %q/%q", args, pod.Namespace, pod.Name)
		}
	})
}
