package control

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestDecodeReadsDocumentsOfEveryForm(t *testing.T) {
	const svc = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"NAME"},"spec":{"ports":[{"port":80}]}}`
	named := func(n string) string { return strings.ReplaceAll(svc, "NAME", n) }
	tests := []struct{ name, in, want string }{
		{"YAML documents, empty ones and comments among them", "# first\n---\n" + named("a") + "\n---\n\n---\n# nothing\n---\n" + named("b") + "\n", "a b"},
		{"YAML with Windows line ends", strings.ReplaceAll("apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports:\n  - port: 80\n", "\n", "\r\n"), "a"},
		{"one JSON value after another", named("a") + named("b") + "\n" + named("c"), "a b c"},
		{"a list", `{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":""},"items":[` + named("a") + "," + named("b") + "]}", "a b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objs, err := Decode([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range objs {
				got = append(got, o.GetName())
				if o.GetNamespace() != "default" {
					t.Errorf("%s has namespace %q, want default", o.GetName(), o.GetNamespace())
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("read %s, want %s", s, tt.want)
			}
		})
	}
}

// An export of kubectl's is taken as it is.
func TestDecodeTakesWhatKubectlPrints(t *testing.T) {
	objs, err := Decode([]byte(`
apiVersion: v1
kind: Service
metadata:
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels: {app: web}
  name: web
  namespace: shop
  resourceVersion: "123"
  uid: 4a1bb2b0-0000-4000-8000-000000000000
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  ports: [{name: http, port: 80, protocol: TCP, targetPort: http}]
  selector: {app: web}
  sessionAffinity: None
  type: ClusterIP
status: {loadBalancer: {}}
`))
	if err != nil {
		t.Fatal(err)
	}
	s := objs[0].(*corev1.Service)
	if s.Namespace != "shop" || s.Spec.Ports[0].TargetPort.StrVal != "http" {
		t.Errorf("read %+v", s)
	}
}

func TestDecodeErrorsSayWhereAndWhatIsRight(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string
	}{
		{"nothing", "", []string{"no object", "Service"}},
		{"only comments", "# x\n---\n", []string{"no object"}},
		{"not YAML", "a: [", []string{"document 1"}},
		{"not an object", "- a\n- b\n", []string{"document 1", "apiVersion and kind"}},
		{"no kind", "apiVersion: v1\n", []string{"no kind", "want v1 Service"}},
		{"an unknown kind", "apiVersion: apps/v1\nkind: Deployment\n", []string{`"Deployment"`, `"apps/v1"`, "want v1 Service"}},
		{"a pod", "apiVersion: v1\nkind: Pod\n", []string{`"Pod"`, "written by the node itself"}},
		{"a wrong apiVersion", "apiVersion: v1\nkind: EndpointSlice\n", []string{`"v1"`, `want "discovery.k8s.io/v1"`}},
		{"an unknown field", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {prots: []}\n", []string{`Service "web"`, `unknown field "spec.prots"`}},
		{"a field in the wrong case", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {Ports: []}\n", []string{`unknown field "spec.Ports"`}},
		{"a field twice", "apiVersion: v1\nkind: Service\nkind: Service\n", []string{"document 1", "kind"}},
		{"a wrong type", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: eighty}]}\n", []string{`Service "web"`, "port"}},
		{"the second document", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {}\n", []string{"document 2", "Service default/b", "spec.ports"}},
		{"an item of a list", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod"}]}`, []string{"items[0]", "Pod"}},
		{"a broken JSON stream", `{"apiVersion":"v1","kind":"Service"`, []string{"document 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objs, err := Decode([]byte(tt.in))
			if err == nil {
				t.Fatalf("accepted: %v", objs)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q; want %q in it", err, w)
				}
			}
		})
	}
}

func TestValidateNamesTheFieldAndWhatIsRight(t *testing.T) {
	service := func(spec string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: " + spec
	}
	annotated := func(annotations, proto string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {" + annotations + "}}\nspec: {ports: [{port: 80, protocol: " + proto + "}]}"
	}
	balanced := func(ingress string) string {
		return service("{type: LoadBalancer, loadBalancerClass: example.com/lb, ports: [{port: 80}]}\nstatus: {loadBalancer: {ingress: [{" + ingress + "}]}}")
	}
	tests := []struct {
		name, in string
		want     string // in the error; empty: accepted
	}{
		{"plain", service("{ports: [{port: 80}]}"), ""},
		{"one port over two protocols", service("{ports: [{name: a, port: 53}, {name: b, port: 53, protocol: UDP}]}"), ""},
		{"SCTP", service("{ports: [{port: 9, protocol: SCTP}]}"), ""},
		{"headless without ports", service("{clusterIP: None}"), ""},
		{"dual stack", service(`{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4], ports: [{port: 80}]}`), ""},
		{"a name in capitals", "apiVersion: v1\nkind: Service\nmetadata: {name: Web}\nspec: {ports: [{port: 80}]}", "metadata.name"},
		{"a name that starts with a digit", "apiVersion: v1\nkind: Service\nmetadata: {name: 1web}\nspec: {ports: [{port: 80}]}", "metadata.name"},
		{"no name", "apiVersion: v1\nkind: Service\nspec: {ports: [{port: 80}]}", "metadata.name: missing"},
		{"a namespace with a slash", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a/b}\nspec: {ports: [{port: 80}]}", "metadata.namespace"},
		{"no port", service("{}"), "spec.ports: empty"},
		{"port 0", service("{ports: [{port: 0}]}"), "spec.ports[0].port"},
		{"port 65536", service("{ports: [{port: 65536}]}"), "spec.ports[0].port"},
		{"a target port name too long", service("{ports: [{port: 80, targetPort: averyverylongname}]}"), "spec.ports[0].targetPort"},
		{"target port 70000", service("{ports: [{port: 80, targetPort: 70000}]}"), "spec.ports[0].targetPort"},
		{"two ports without names", service("{ports: [{port: 80}, {port: 81}]}"), "spec.ports[0].name: missing"},
		{"two ports of one name", service("{ports: [{name: a, port: 80}, {name: a, port: 81}]}"), `spec.ports[1].name: "a" is another port's`},
		{"one port twice", service("{ports: [{name: a, port: 80}, {name: b, port: 80}]}"), "spec.ports[1].port: TCP 80"},
		{"an unknown protocol", service("{ports: [{port: 80, protocol: ICMP}]}"), "want TCP, UDP or SCTP"},
		{"an unknown type", service("{type: Ingress, ports: [{port: 80}]}"), "want ClusterIP, NodePort, LoadBalancer or ExternalName"},
		{"a node port without the type", service("{ports: [{port: 80, nodePort: 30000}]}"), "want type NodePort"},
		{"a node port twice", service("{type: NodePort, ports: [{name: a, port: 80, nodePort: 30000}, {name: b, port: 81, nodePort: 30000}]}"), "spec.ports[1].nodePort"},
		{"headless with node ports", service("{type: NodePort, clusterIP: None, ports: [{port: 80}]}"), "want type ClusterIP"},
		{"a health check port without a use", service("{type: LoadBalancer, healthCheckNodePort: 30000, ports: [{port: 80}]}"), "want none except with type LoadBalancer and externalTrafficPolicy Local"},
		{"an external policy nobody needs", service("{externalTrafficPolicy: Local, ports: [{port: 80}]}"), "that clients outside don't reach"},
		{"an external policy for external addresses", service("{externalTrafficPolicy: Local, externalIPs: [198.51.100.1], ports: [{port: 80}]}"), ""},
		{"an external address that is none", service("{externalIPs: [here], ports: [{port: 80}]}"), `spec.externalIPs[0]: "here" is not an IP address`},
		{"a loopback external address", service("{externalIPs: [127.0.0.1], ports: [{port: 80}]}"), "is a loopback address"},
		{"the metadata service as external address", service("{externalIPs: [169.254.169.254], ports: [{port: 80}]}"), "is a link-local address"},
		{"an external address of a headless service", service("{clusterIP: None, externalIPs: [198.51.100.1], ports: [{port: 80}]}"), "want none, or a ClusterIP"},
		{"everything of a load balancer", service("{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30001, loadBalancerIP: 198.51.100.1, loadBalancerClass: example.com/lb, allocateLoadBalancerNodePorts: false, loadBalancerSourceRanges: [10.0.0.0/8, ' 2001:db8::/32'], ports: [{port: 80}]}"), ""},
		{"source ranges without a load balancer", service("{loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]}"), "spec.loadBalancerSourceRanges: given in a service of type ClusterIP; want type LoadBalancer"},
		{"a source range that is none", service("{type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.1], ports: [{port: 80}]}"), "is not a prefix such as"},
		{"a source range with host bits", service("{type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.1/8], ports: [{port: 80}]}"), "want 10.0.0.0/8"},
		{"a class that is none", service("{type: LoadBalancer, loadBalancerClass: 'a b', ports: [{port: 80}]}"), "spec.loadBalancerClass"},
		{"node ports refused elsewhere than at a load balancer", service("{type: NodePort, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]}"), "want type LoadBalancer"},
		{"a distribution", service("{trafficDistribution: PreferSameNode, ports: [{port: 80}]}"), ""},
		{"an unknown distribution", service("{trafficDistribution: Near, ports: [{port: 80}]}"), "want PreferSameZone, PreferSameNode, PreferClose"},
		{"an affinity's timeout without affinity", service("{sessionAffinityConfig: {clientIP: {timeoutSeconds: 9}}, ports: [{port: 80}]}"), "want ClientIP, or none"},
		{"another name", service("{type: ExternalName, externalName: db.example.com.}"), ""},
		{"another name that is missing", service("{type: ExternalName}"), "spec.externalName: missing"},
		{"another name that is none", service("{type: ExternalName, externalName: 'a b'}"), "spec.externalName"},
		{"another name with an address", service("{type: ExternalName, externalName: db.example.com, clusterIP: 10.96.0.1}"), "spec.clusterIP"},
		{"proxy mode", annotated("vswitch/mode: proxy, vswitch/proxy-protocol: v2", "TCP"), ""},
		{"an unknown mode", annotated("vswitch/mode: fast", "TCP"), `metadata.annotations[vswitch/mode]: "fast" is not known; want "proxy"`},
		{"proxy mode without TCP", annotated("vswitch/mode: proxy", "UDP"), "only TCP can be proxied"},
		{"an unknown version of the PROXY protocol", annotated("vswitch/mode: proxy, vswitch/proxy-protocol: v1", "TCP"), `"v1" is not known; want "v2"`},
		{"the PROXY protocol without a proxy", annotated("vswitch/proxy-protocol: v2", "TCP"), "given without vswitch/mode: proxy"},
		{"an annotation mistyped", annotated("vswitch/proxy-protcol: v2", "TCP"), "not known; want vswitch/mode or vswitch/proxy-protocol"},
		{"somebody else's annotation", annotated("example.com/mode: fast", "TCP"), ""},
		{"another class's address", balanced("ip: 198.51.100.1, ipMode: VIP"), ""},
		{"another class's address that is none", balanced("ip: here"), "status.loadBalancer.ingress[0].ip"},
		{"another class's name", balanced("hostname: lb.example.com"), ""},
		{"an unknown mode of an address", balanced("ip: 198.51.100.1, ipMode: Direct"), "want VIP or Proxy"},
		{"a clusterIP that is none", service("{clusterIP: ten, ports: [{port: 80}]}"), `"ten" is not an IP address`},
		{"two clusterIPs of one family", service("{clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 80}]}"), "second of its family"},
		{"clusterIP and clusterIPs that differ", service("{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.2], ports: [{port: 80}]}"), "is not the first of spec.clusterIPs"},
		{"an address of another family than said", service("{clusterIPs: [10.96.0.1], ipFamilies: [IPv6], ports: [{port: 80}]}"), "is not of family IPv6"},
		{"an unknown family", service("{ipFamilies: [IPv5], ports: [{port: 80}]}"), "want IPv4 or IPv6"},
		{"two families on a single stack", service("{ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6], ports: [{port: 80}]}"), "want PreferDualStack or RequireDualStack"},
		{"an unknown policy", service("{externalTrafficPolicy: Node, ports: [{port: 80}]}"), "want Cluster or Local"},
		{"an affinity too long", service("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}, ports: [{port: 80}]}"), "want 1 to 86400"},
		{"a selector that is no label", service("{selector: {'a b': c}, ports: [{port: 80}]}"), "spec.selector"},
		{"a slice without a service", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\naddressType: IPv4\nendpoints: []", "kubernetes.io/service-name"},
		{"a slice without an address", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nendpoints: [{addresses: []}]", "endpoints[0].addresses"},
		{"a slice without a port number", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nendpoints: []\nports: [{name: a}]", "ports[0].port: missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode([]byte(tt.in))
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && err == nil:
				t.Error("accepted")
			case tt.want != "" && !strings.Contains(err.Error(), tt.want):
				t.Errorf("error %q; want %q in it", err, tt.want)
			}
		})
	}
}

func TestEncodeIsReadBackWithKindAndVersion(t *testing.T) {
	for _, kind := range []Kind{KindNode, KindLease, KindPod, KindService, KindEndpointSlice} {
		o := newObject(kind)
		o.SetName("x")
		js, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(js), `"kind":"`+kind.String()+`"`) || !strings.Contains(string(js), `"apiVersion":"`+kind.APIVersion()+`"`) {
			t.Errorf("%s encodes as %s, without kind and apiVersion", kind, js)
		}
		back, err := DecodeStored(kind, js)
		if err != nil {
			t.Fatal(err)
		}
		if KindOf(back) != kind || back.GetName() != "x" {
			t.Errorf("%s reads back as %s", js, KeyOf(back))
		}
		if again, err := Encode(back); err != nil || string(again) != string(js) {
			t.Errorf("%s encodes again as %s", js, again)
		}
	}
}

func TestParseKindTakesWhatPeopleType(t *testing.T) {
	for in, want := range map[string]Kind{
		"node": KindNode, "Nodes": KindNode, "service": KindService, "SERVICES": KindService, "pods": KindPod,
		"EndpointSlice": KindEndpointSlice, "endpointslices": KindEndpointSlice, "endpoints": KindEndpointSlice,
	} {
		if got, err := ParseKind(in); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", in, got, err, want)
		}
	}
	if _, err := ParseKind("ingress"); err == nil || !strings.Contains(err.Error(), "endpointslice") {
		t.Errorf("%v; want the kinds there are", err)
	}
}

// Whatever the input, Decode returns objects that are valid, or an error; and what
// it returns reads back as itself.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", "---\n---", "a: &a [*a]", "{}", "[]", "null", "\x00", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n",
		`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"List","items":[]}]}`,
		"apiVersion: v1\nkind: Node\nmetadata: {name: n, annotations: {flannel.alpha.coreos.com/backend-data: '{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:01\"}', flannel.alpha.coreos.com/public-ip: 192.0.2.1}}\nspec: {podCIDRs: [10.0.0.0/24]}",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x, labels: {kubernetes.io/service-name: a}}\naddressType: IPv6\nendpoints: [{addresses: ['2001:db8::1']}]\nports: [{port: 1}]",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		objs, err := Decode(in)
		if err != nil {
			return
		}
		set := NewObjects(testSelf)
		for _, o := range objs {
			if err := Validate(o); err != nil {
				t.Fatalf("decoded an invalid object: %v", err)
			}
			js, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			back, err := Decode(js)
			if err != nil || len(back) != 1 || KeyOf(back[0]) != KeyOf(o) {
				t.Fatalf("%s reads back as %v, %v", js, back, err)
			}
			set.Put(o)
		}
		set.State()
		for _, e := range set.State().Services {
			for _, p := range e.Endpoints {
				if p.Addr.IsLoopback() || p.Addr.IsLinkLocalUnicast() || p.Addr.IsMulticast() || p.Addr.IsUnspecified() {
					t.Fatalf("endpoint %v programmed", p)
				}
			}
		}
	})
}
