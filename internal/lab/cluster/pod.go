package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"vswitch/internal/lab"
)

// pod is one pod of a kubelet: run is its whole life.
type pod struct {
	kubelet *Kubelet
	wake    chan struct{} // there is something new to look at

	mu     sync.Mutex // guards these
	latest *corev1.Pod
	gone   bool        // from the API server
	net    *Attachment // nil before it is set up
	anew   bool        // its network and processes are to be made anew

	// The run's own.
	procs []*lab.Process // by container; nil for one without a command
	files string         // directory of its service account's token
	since metav1.Time
	ready bool
}

// see takes what the API server says of the pod now.
func (p *pod) see(latest *corev1.Pod, gone bool) {
	p.mu.Lock()
	p.latest, p.gone = latest, gone
	p.mu.Unlock()
	p.poke()
}

// poke makes the run look again.
func (p *pod) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it has not looked since the last time
	}
}

func (p *pod) look() (latest *corev1.Pod, leaving bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest, p.gone || p.latest.DeletionTimestamp != nil
}

func (p *pod) namespace() (*lab.Namespace, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.net == nil {
		return nil, fmt.Errorf("cluster: pod %s/%s has no network yet", p.latest.Namespace, p.latest.Name)
	}
	return p.net.Space, nil
}

func (p *pod) run(ctx context.Context) {
	log := p.kubelet.log.With("pod", p.latest.Namespace+"/"+p.latest.Name)
	p.since = metav1.Now()
	failed := func(err error) { log.Warn("start or report", "error", err) }
	for p.start(ctx, failed) == nil {
		log.Info("started")
		if !p.keep(ctx, failed) {
			break
		}
		log.Info("starts anew")
		p.stop(0)
	}
	if ctx.Err() != nil {
		return // the lab removes what is left
	}
	p.end(ctx, func(err error) { log.Warn("end", "error", err) })
	log.Info("ended")
}

// start sets up the pod's network and starts its containers, as often as it takes.
func (p *pod) start(ctx context.Context, failed func(error)) error {
	for {
		latest, leaving := p.look()
		if leaving {
			return errLeaving
		}
		err := p.tearDown(ctx) // of what was before
		if err == nil {
			err = p.tryStart(ctx, latest)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		failed(err)
		p.stop(0)
		select {
		case <-p.wake:
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (p *pod) tryStart(ctx context.Context, latest *corev1.Pod) error {
	for _, c := range latest.Spec.Containers {
		if c.Image != Image {
			return fmt.Errorf("cluster: no image %q here, only %q", c.Image, Image)
		}
	}
	n, err := p.attach(ctx, latest)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.net = n
	p.mu.Unlock()
	if err := p.writeFiles(ctx, latest); err != nil {
		return err
	}
	for _, c := range latest.Spec.Containers {
		proc, err := p.startContainer(latest, &c)
		if err != nil {
			return err
		}
		p.procs = append(p.procs, proc)
	}
	return nil
}

// attach gives the pod a network of its own, or the host's.
func (p *pod) attach(ctx context.Context, latest *corev1.Pod) (*Attachment, error) {
	k := p.kubelet
	if latest.Spec.HostNetwork {
		return &Attachment{Space: k.node.Namespace, IPs: k.hostIPs(), Detach: func(context.Context) error { return nil }}, nil
	}
	spec := lab.PodSpec{Namespace: latest.Namespace, Name: latest.Name, UID: string(latest.UID)}
	for _, c := range latest.Spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort != 0 {
				spec.Ports = append(spec.Ports, lab.PortMapping{
					HostPort: int(port.HostPort), ContainerPort: int(port.ContainerPort), Protocol: string(port.Protocol), HostIP: port.HostIP,
				})
			}
		}
	}
	k.mu.Lock()
	network := k.network
	k.mu.Unlock()
	return network.Attach(ctx, spec)
}

// keep reports the pod until it has to leave, or to start anew.
func (p *pod) keep(ctx context.Context, failed func(error)) (anew bool) {
	var said string
	for {
		latest, leaving := p.look()
		if leaving || ctx.Err() != nil {
			return false
		}
		p.mu.Lock()
		anew, p.anew = p.anew, false
		p.mu.Unlock()
		if anew {
			return true
		}
		status := p.status(latest)
		if b, _ := json.Marshal(status); string(b) != said {
			if err := p.report(ctx, latest, status); err != nil {
				failed(err)
			} else {
				said = string(b)
			}
		}
		select {
		case <-p.wake:
		case <-time.After(p.period(latest)):
		case <-ctx.Done():
		}
	}
}

// period is how long the pod may go unlooked at: as long as its probes allow.
func (p *pod) period(latest *corev1.Pod) time.Duration {
	d := time.Second
	for _, c := range latest.Spec.Containers {
		if c.ReadinessProbe != nil || !p.ready {
			d = 100 * time.Millisecond
		}
	}
	return d
}

// status is what the pod is like now.
func (p *pod) status(latest *corev1.Pod) corev1.PodStatus {
	s := corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &p.since}
	for _, a := range p.kubelet.hostIPs() {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: a.String()})
	}
	for _, a := range p.net.IPs {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: a.String()})
	}
	s.HostIP, s.PodIP = s.HostIPs[0].IP, s.PodIPs[0].IP

	containers := true
	for i, c := range latest.Spec.Containers {
		cs := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.Image, ContainerID: fmt.Sprintf("lab://%s-%d", latest.UID, i)}
		started := true
		cs.Started, cs.State.Running = &started, &corev1.ContainerStateRunning{StartedAt: p.since}
		if proc := p.procs[i]; proc != nil {
			select {
			case <-proc.Done():
				cs.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Error", ExitCode: 1, StartedAt: p.since}}
				s.Phase = corev1.PodFailed
			default:
				cs.Ready = p.containerReady(&c, s.PodIP)
			}
		} else {
			cs.Ready = true
		}
		containers = containers && cs.Ready
		s.ContainerStatuses = append(s.ContainerStatuses, cs)
	}
	p.ready = containers
	for _, gate := range latest.Spec.ReadinessGates {
		p.ready = p.ready && conditionTrue(latest, gate.ConditionType)
	}
	s.Conditions = []corev1.PodCondition{
		condition(corev1.PodReadyToStartContainers, true), condition(corev1.PodInitialized, true),
		condition(corev1.ContainersReady, containers), condition(corev1.PodReady, p.ready),
	}
	return s
}

func conditionTrue(p *corev1.Pod, t corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func condition(t corev1.PodConditionType, ok bool) corev1.PodCondition {
	if ok {
		return corev1.PodCondition{Type: t, Status: corev1.ConditionTrue}
	}
	return corev1.PodCondition{Type: t, Status: corev1.ConditionFalse}
}

// containerReady probes a container as its readiness probe says, from the node.
func (p *pod) containerReady(c *corev1.Container, podIP string) bool {
	if c.ReadinessProbe == nil {
		return true
	}
	client := &http.Client{
		Timeout:   time.Second,
		Transport: &http.Transport{DialContext: DialFrom(p.kubelet.node.Namespace), DisableKeepAlives: true},
	}
	switch h := c.ReadinessProbe.ProbeHandler; {
	case h.HTTPGet != nil:
		r, err := client.Get("http://" + net.JoinHostPort(podIP, portOf(c, h.HTTPGet.Port)) + h.HTTPGet.Path)
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode >= 200 && r.StatusCode < 400
	case h.TCPSocket != nil:
		conn, err := DialFrom(p.kubelet.node.Namespace)(context.Background(), "tcp", net.JoinHostPort(podIP, portOf(c, h.TCPSocket.Port)))
		if err != nil {
			return false
		}
		conn.Close()
		return true
	}
	return true
}

func portOf(c *corev1.Container, port intstr.IntOrString) string {
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				return fmt.Sprint(p.ContainerPort)
			}
		}
	}
	return fmt.Sprint(port.IntValue())
}

func (p *pod) report(ctx context.Context, latest *corev1.Pod, status corev1.PodStatus) error {
	now := metav1.Now()
	for i := range status.Conditions {
		status.Conditions[i].LastTransitionTime = now
	}
	_, err := p.kubelet.client.CoreV1().Pods(latest.Namespace).Patch(ctx, latest.Name, types.StrategicMergePatchType, statusPatch(latest.UID, p.patchOf(status)), metav1.PatchOptions{}, "status")
	return err
}

// patchOf is a status as a patch says it.
func (p *pod) patchOf(status corev1.PodStatus) any {
	ips := replaced{}
	for _, ip := range status.PodIPs {
		ips = append(ips, ip)
	}
	status.PodIPs = nil
	return struct {
		corev1.PodStatus `json:",inline"`
		PodIPs           replaced `json:"podIPs"`
	}{status, ips}
}

// replaced makes a list of a status the whole list, where a patch would add to it:
// a pod whose network was made anew has other addresses.
type replaced []any

func (l replaced) MarshalJSON() ([]byte, error) {
	return json.Marshal(append([]any{map[string]string{"$patch": "replace"}}, l...))
}

// statusPatch changes a status, of the object with this uid alone if there is one.
func statusPatch(uid types.UID, status any) []byte {
	patch := map[string]any{"status": status}
	if uid != "" {
		patch["metadata"] = map[string]any{"uid": uid}
	}
	b, err := json.Marshal(patch)
	if err != nil {
		panic(fmt.Sprintf("cluster: %v", err)) // the API's own types
	}
	return b
}

// end stops the containers in their time, calls DEL and removes the pod.
func (p *pod) end(ctx context.Context, failed func(error)) {
	latest, _ := p.look()
	grace := 30 * time.Second
	if s := latest.DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	p.stop(grace)
	for ctx.Err() == nil {
		err := p.tearDown(ctx)
		if err == nil {
			break
		}
		failed(err)
		wait(ctx, 250*time.Millisecond)
	}
	os.RemoveAll(p.files)
	for ctx.Err() == nil {
		if _, gone := p.look(); gone && p.isGone() {
			return
		}
		err := p.kubelet.client.CoreV1().Pods(latest.Namespace).Delete(ctx, latest.Name, metav1.DeleteOptions{
			GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(latest.UID)),
		})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		failed(err)
		wait(ctx, 250*time.Millisecond)
	}
}

func (p *pod) isGone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

// stop asks every process to end and kills what has not after grace.
func (p *pod) stop(grace time.Duration) {
	for _, proc := range p.procs {
		if proc != nil {
			proc.Signal(syscall.SIGTERM)
		}
	}
	deadline := time.Now().Add(grace)
	for _, proc := range p.procs {
		if proc == nil {
			continue
		}
		for ended := false; !ended; {
			select {
			case <-proc.Done():
				ended = true
			case <-p.wake:
				if p.isGone() { // by force: little time is left
					deadline = earlier(deadline, time.Now().Add(graceOfGone))
				}
			case <-time.After(time.Until(deadline)):
				proc.Kill()
				ended = true
			}
		}
		proc.Forget()
	}
	p.procs = nil
}

// graceOfGone is what a kubelet leaves a pod that was deleted by force.
const graceOfGone = 2 * time.Second

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// tearDown takes the pod's network away.
func (p *pod) tearDown(ctx context.Context) error {
	p.mu.Lock()
	n := p.net
	p.mu.Unlock()
	if n == nil {
		return nil
	}
	if err := n.Detach(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	p.net = nil
	p.mu.Unlock()
	return nil
}
