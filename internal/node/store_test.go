package node

import (
	"fmt"
	"log/slog"
	"testing"

	"vswitch/internal/config"
)

// TestPodsAreKeptFromTheStore is the node's half of case 44: what the gateway is
// told to deny.
func TestPodsAreKeptFromTheStore(t *testing.T) {
	tests := []struct {
		name  string
		store config.Store
		want  string
	}{
		{"an embedded store on its socket alone", config.Store{}, "[]"},
		{"an embedded store with a port", config.Store{ListenClient: "https://192.0.2.1:2379"}, "[192.0.2.1:2379]"},
		{"on every address", config.Store{ListenClient: "http://0.0.0.0:2379"}, "[0.0.0.0:2379]"},
		{"an external one", config.Store{URLs: []string{"https://192.0.2.5:2379", "https://[2001:db8::5]:2381"}}, "[192.0.2.5:2379 [2001:db8::5]:2381]"},
		{"a name that nobody knows", config.Store{URLs: []string{"https://etcd.invalid:2379"}}, "[0.0.0.0:2379]"}, // RFC 6761 section 6.4
	}
	for _, tt := range tests {
		n := &node{cfg: config.Config{Store: tt.store}, ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
		if got := fmt.Sprint(n.storePlaces()); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
