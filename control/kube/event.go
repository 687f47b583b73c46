package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/control"
)

// What an object asks for and does not get is told by an Event on it. All nodes find
// the same at the same time: so an Event's name follows from what it says, the first
// node to write it has written it for all, and none is in a hurry. The API server
// forgets Events after an hour; what lasts longer is in `vswitch get services`.

const (
	// maxTold bounds what waits to be told; what comes beyond is in the log alone.
	maxTold = 256
	// eventPause is the wait between two Events of this node's.
	eventPause = time.Second
	// defaultSpread spreads the nodes of a cluster, who begin at once: 5,000 of them
	// come to some 1,000 requests a second.
	defaultSpread = 5 * time.Second
	// maxMessageBytes is what events.k8s.io allows a note.
	maxMessageBytes = 1024

	eventReason = "NotProgrammed"
)

// Tell has an Event written about what an object asks for in vain. It never waits.
func (s *Source) Tell(p control.Problem) {
	select {
	case s.told <- p:
	default:
	}
}

// tellAll writes Events until ctx ends.
func (s *Source) tellAll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		var p control.Problem
		select {
		case <-ctx.Done():
			return
		case p = <-s.told:
		}
		wait := eventPause
		if len(s.told) == 0 {
			wait = rand.N(s.cfg.Spread)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		e := s.event(p)
		if err := s.client.createEvent(ctx, e); err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			s.log.Warn("Event not written", "object", p.Object.String(), "err", err)
		}
	}
}

// event is what is written of a problem.
func (s *Source) event(p control.Problem) *corev1.Event {
	h := fnv.New64a()
	fmt.Fprintf(h, "%v\n%s", p.Object, p.Reason)
	namespace := p.Object.Scope
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where those of objects without one go
	}
	message := p.Reason
	if len(message) > maxMessageBytes {
		message = message[:maxMessageBytes]
	}
	var uid types.UID
	s.mu.Lock()
	if m := s.mirrors[p.Object.Kind]; m != nil && m.objs[p.Object] != nil {
		uid = m.objs[p.Object].GetUID()
	}
	s.mu.Unlock()
	now := metav1.Now()
	return &corev1.Event{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%016x", p.Object.Name, h.Sum64())},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: p.Object.Kind.APIVersion(), Kind: p.Object.Kind.String(), Namespace: p.Object.Scope, Name: p.Object.Name, UID: uid,
		},
		Type: corev1.EventTypeWarning, Reason: eventReason, Message: message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source:              corev1.EventSource{Component: "vswitch", Host: s.cfg.Node},
		ReportingController: "vswitch", ReportingInstance: s.cfg.Node,
	}
}

func (c *client) createEvent(ctx context.Context, e *corev1.Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return c.core.Post().Namespace(e.Namespace).Resource("events").SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
}
