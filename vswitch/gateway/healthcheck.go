package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"vswitch/internal/wire"
)

// Health checks for load balancers: with externalTrafficPolicy Local a node
// without an endpoint of its own serves nobody, and a load balancer learns that by
// asking each node over HTTP at the service's healthCheckNodePort. The answer is
// the one kube-proxy gives: 200 or 503, a weight in a header and the same in JSON.
// Endpoints that only finish what they have don't count, though they are still sent
// what comes.

// weightHeader tells load balancers that can use it how many endpoints share what
// they send to this node.
const weightHeader = "X-Load-Balancing-Endpoint-Weight"

// Bounds on what a client may hold of a health check, chosen by us: a probe is one
// small request on a fresh connection, or a few a minute on one that stays.
const (
	healthTimeout     = 5 * time.Second
	healthIdleTimeout = time.Minute
	healthHeaderBytes = 4 << 10
)

type namespacedName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// health answers for one service, all its ports together.
type health struct {
	name  namespacedName
	ports map[ServiceKey][]uint64 // ready endpoints of this node, by port; guarded by listeners.mu
	door  *entrance               // guarded by listeners.mu
	ready atomic.Int64            // endpoints of this node, each counted once
}

// replaceHealth makes what next says of its service's health stand for what prev
// said; either may be nil. Callers hold mu.
func (l *listeners) replaceHealth(prev, next *Service) {
	key := keyOfEither(prev, next)
	name := namespacedName{key.Namespace, key.Name}
	h := l.health[name]
	var port uint16
	if next != nil {
		port = next.HealthCheckNodePort
	}
	if h == nil && port == 0 {
		return
	}
	if h == nil {
		h = &health{name: name, ports: make(map[ServiceKey][]uint64)}
		l.health[name] = h
	}
	delete(h.ports, key)
	if port != 0 {
		h.ports[key] = next.readyHere()
	}
	h.count()
	if h.door != nil && (len(h.ports) == 0 || port != 0 && h.door.port != port) {
		l.remove([]*entrance{h.door})
		h.door = nil
	}
	if len(h.ports) == 0 {
		delete(l.health, name)
	} else if h.door == nil {
		h.door = &entrance{
			kind: HealthCheckNodePort, owner: name.Namespace + "/" + name.Name, service: key,
			proto: wire.ProtoTCP, port: port, health: h,
		}
		l.add(h.door)
	}
}

// readyHere are the identities of the ready endpoints of this node.
func (s *Service) readyHere() []uint64 {
	ids := []uint64{}
	for _, e := range s.Endpoints {
		if e.OnNode && e.Ready {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

func (h *health) count() {
	ids := make(map[uint64]bool)
	for _, port := range h.ports {
		for _, id := range port {
			ids[id] = true
		}
	}
	h.ready.Store(int64(len(ids)))
}

// serve answers on a listener until the result is closed.
func (h *health) serve(on net.Listener, serving *sync.WaitGroup) io.Closer {
	s := &http.Server{
		Handler: h, ReadTimeout: healthTimeout, WriteTimeout: healthTimeout, IdleTimeout: healthIdleTimeout,
		MaxHeaderBytes: healthHeaderBytes,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // what clients do wrong is no news
	}
	serving.Go(func() { s.Serve(on) })
	return &healthServer{s, on}
}

type healthServer struct {
	*http.Server
	on net.Listener
}

// Close closes the listener itself: the server knows it only once it serves.
func (s *healthServer) Close() error { return errors.Join(s.on.Close(), s.Server.Close()) }

// ServeHTTP implements http.Handler. Any path and method gets the answer.
func (h *health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	n := h.ready.Load()
	body, err := json.Marshal(struct {
		Service   namespacedName `json:"service"`
		Endpoints int64          `json:"localEndpoints"`
		Healthy   bool           `json:"serviceProxyHealthy"`
	}{h.name, n, true})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set(weightHeader, strconv.FormatInt(n, 10))
	if n == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	w.Write(body)
}
