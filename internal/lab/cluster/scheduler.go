package cluster

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// schedule binds pods to nodes until the cluster is closed: to a node that is ready, takes pods
// and has the labels the pod selects, the one with the fewest pods of the same
// owner, then with the fewest.
func (c *Cluster) schedule() error {
	config, err := c.REST(c.Control.Namespace, pkix.Name{CommonName: "system:kube-scheduler"})
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	nodes, pods := factory.Core().V1().Nodes(), factory.Core().V1().Pods()
	wake := make(chan struct{}, 1)
	changed := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	for _, i := range []cache.SharedIndexInformer{nodes.Informer(), pods.Informer()} {
		i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() }, UpdateFunc: func(_, _ any) { changed() }, DeleteFunc: func(any) { changed() },
		})
	}
	c.Go(func(ctx context.Context) {
		factory.Start(ctx.Done())
		defer factory.Shutdown()
		factory.WaitForCacheSync(ctx.Done())
		// What was bound a moment ago and is not in the cache yet.
		assumed := map[string]string{}
		for ctx.Err() == nil {
			allNodes, _ := nodes.Lister().List(labels.Everything())
			allPods, _ := pods.Lister().List(labels.Everything())
			again := false
			for _, p := range allPods {
				if p.Spec.NodeName != "" {
					delete(assumed, string(p.UID))
				}
			}
			for _, p := range allPods {
				if p.Spec.NodeName != "" || assumed[string(p.UID)] != "" || p.DeletionTimestamp != nil {
					continue
				}
				node := choose(p, allNodes, allPods, assumed)
				if node == "" {
					continue // until a node changes
				}
				err := client.CoreV1().Pods(p.Namespace).Bind(ctx, &corev1.Binding{
					ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
					Target:     corev1.ObjectReference{Kind: "Node", Name: node},
				}, metav1.CreateOptions{})
				if err != nil {
					again = true // the API server is away, or the pod is
					continue
				}
				assumed[string(p.UID)] = node
			}
			if again {
				time.AfterFunc(250*time.Millisecond, changed)
			}
			select {
			case <-wake:
			case <-ctx.Done():
			}
		}
	})
	return nil
}

func choose(p *corev1.Pod, nodes []*corev1.Node, pods []*corev1.Pod, assumed map[string]string) string {
	owner := metav1.GetControllerOf(p)
	type load struct{ siblings, all int }
	loads := map[string]load{}
	for _, o := range pods {
		on := o.Spec.NodeName
		if on == "" {
			on = assumed[string(o.UID)]
		}
		l := loads[on]
		l.all++
		if by := metav1.GetControllerOf(o); owner != nil && by != nil && by.UID == owner.UID && o.DeletionTimestamp == nil {
			l.siblings++
		}
		loads[on] = l
	}
	best := ""
	for _, n := range nodes {
		if n.Spec.Unschedulable || !isReady(n) || !labels.SelectorFromSet(p.Spec.NodeSelector).Matches(labels.Set(n.Labels)) || !wants(p, n.Name) {
			continue
		}
		a, b := loads[n.Name], loads[best]
		if best == "" || a.siblings < b.siblings || a.siblings == b.siblings && (a.all < b.all || a.all == b.all && n.Name < best) {
			best = n.Name
		}
	}
	return best
}

// wants reports whether a node is the one that a DaemonSet's pod is for, which asks
// for it by an affinity; others ask for none.
func wants(p *corev1.Pod, node string) bool {
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && slices.Contains(f.Values, node) {
				return true
			}
		}
	}
	return false
}

func isReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
