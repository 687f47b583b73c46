package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"vswitch/control"
)

// serviceAccount is where a pod finds who it is
// (https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/).
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// client asks the API server. It knows the few types that are read: Kubernetes'
// own clientset would bring hundreds.
type client struct {
	http      *http.Client
	core      *rest.RESTClient // v1
	discovery *rest.RESTClient // discovery.k8s.io/v1
}

func newClient(c *Config) (*client, error) {
	cfg, err := restConfig(c)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Node{}, &corev1.NodeList{}, &corev1.Pod{}, &corev1.PodList{}, &corev1.Service{}, &corev1.ServiceList{})
	scheme.AddKnownTypes(discoveryv1.SchemeGroupVersion, &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{})
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	metav1.AddToGroupVersion(scheme, discoveryv1.SchemeGroupVersion)
	cfg.ContentConfig = rest.ContentConfig{
		AcceptContentTypes:   runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		ContentType:          runtime.ContentTypeProtobuf,
		NegotiatedSerializer: serializer.NewCodecFactory(scheme).WithoutConversion(),
	}
	cfg.QPS = -1 // what asks here waits by itself before it asks again
	cfg.UserAgent = "vswitch"
	out := &client{}
	if out.http, err = rest.HTTPClientFor(cfg); err != nil {
		return nil, fmt.Errorf("API server %s: %w", cfg.Host, err)
	}
	for to, at := range map[**rest.RESTClient]struct {
		gv   schema.GroupVersion
		path string
	}{
		&out.core:      {corev1.SchemeGroupVersion, "/api"},
		&out.discovery: {discoveryv1.SchemeGroupVersion, "/apis"},
	} {
		cfg.GroupVersion, cfg.APIPath = &at.gv, at.path
		if *to, err = rest.RESTClientForConfigAndClient(cfg, out.http); err != nil {
			return nil, fmt.Errorf("API server %s: %w", cfg.Host, err)
		}
	}
	return out, nil
}

// restConfig says where the API server is and who this node is to it.
func restConfig(c *Config) (*rest.Config, error) {
	if c.Kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags(c.APIServer, c.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig %s: %w", c.Kubeconfig, err)
		}
		return cfg, nil
	}
	if c.APIServer == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("--store kubernetes: %w; want --kubeconfig FILE, or a pod with a service account and --apiserver URL", err)
		}
		c.Log.Warn("the API server is reached by its service address, which this node itself provides; --apiserver URL names another", "addr", cfg.Host)
		return cfg, nil
	}
	cfg := &rest.Config{Host: c.APIServer}
	if _, err := os.Stat(filepath.Join(serviceAccount, "token")); err == nil {
		cfg.BearerTokenFile = filepath.Join(serviceAccount, "token")
		cfg.CAFile = filepath.Join(serviceAccount, "ca.crt")
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("--apiserver %s: %w", c.APIServer, err)
	}
	return cfg, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// resource is one kind as it is listed and watched.
type resource struct {
	kind      control.Kind
	empty     func() runtime.Object // one of its objects
	list      func() runtime.Object
	selector  func(*metav1.ListOptions)
	trim      func(runtime.Object) control.Object
	discovery bool // its API group is discovery.k8s.io
}

// resources are all that are read.
func resources(c *Config) []resource {
	forProxy := func(o *metav1.ListOptions) {
		if !c.Names { // else they still have names
			o.LabelSelector = "!" + control.LabelProxyName + ",!" + corev1.IsHeadlessService
		}
	}
	return []resource{
		{kind: control.KindNode, empty: func() runtime.Object { return &corev1.Node{} }, list: func() runtime.Object { return &corev1.NodeList{} }, trim: trimNode},
		{
			kind: control.KindPod, empty: func() runtime.Object { return &corev1.Pod{} }, list: func() runtime.Object { return &corev1.PodList{} }, trim: trimPod,
			selector: func(o *metav1.ListOptions) { o.FieldSelector = "spec.nodeName=" + c.Node },
		},
		{kind: control.KindService, empty: func() runtime.Object { return &corev1.Service{} }, list: func() runtime.Object { return &corev1.ServiceList{} }, trim: trimService, selector: forProxy},
		{
			kind: control.KindEndpointSlice, empty: func() runtime.Object { return &discoveryv1.EndpointSlice{} }, list: func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
			trim: func(o runtime.Object) control.Object { return trimSlice(o, c.Names) }, selector: forProxy, discovery: true,
		},
	}
}

func (c *client) request(r *resource, o metav1.ListOptions) *rest.Request {
	from := c.core
	if r.discovery {
		from = c.discovery
	}
	if r.selector != nil {
		r.selector(&o)
	}
	return from.Get().Resource(r.kind.Plural()).VersionedParams(&o, metav1.ParameterCodec)
}

func (c *client) listAll(ctx context.Context, r *resource, o metav1.ListOptions) (runtime.Object, error) {
	list := r.list()
	return list, c.request(r, o).Do(ctx).Into(list)
}

func (c *client) watch(ctx context.Context, r *resource, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return c.request(r, o).Watch(ctx)
}

func (c *client) node(ctx context.Context, name string) (*corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	n := &corev1.Node{}
	return n, c.core.Get().Resource("nodes").Name(name).Do(ctx).Into(n)
}

// patchNode merges a patch into a node's metadata, by its status: there it can
// change neither labels' owner, taints nor anything else of the spec.
func (c *client) patchNode(ctx context.Context, name string, patch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return c.core.Patch(types.MergePatchType).Resource("nodes").Name(name).SubResource("status").Body(patch).Do(ctx).Error()
}
