package arrows

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// hot is the code that runs for every frame, or every batch of them: no log, no
// formatting, no clock, no lock, no goroutine. With no functions named, the
// whole file is hot.
var hot = []struct {
	file      string
	functions []string
}{
	{file: "internal/wire/checksum.go"},
	{file: "internal/wire/headers.go"},
	{file: "internal/wire/quoted.go"},
	{file: "internal/wire/wire.go"},
	{file: "internal/offload/checksum.go"},
	{file: "internal/offload/coalesce.go"},
	{file: "internal/offload/segment.go"},
	{file: "vswitch/frame/frame.go"},
	{file: "vswitch/frame/virtio.go"},
	{file: "vswitch/fib/exact4.go"},
	{file: "vswitch/fib/exact6.go"},
	{file: "vswitch/fib/line.go"},
	{file: "vswitch/fib/fib.go", functions: []string{"Lookup", "Warm", "lookup4", "lookup6"}},
	{file: "vswitch/flow/key.go"},
	{file: "vswitch/flow/hash.go"},
	{file: "vswitch/flow/lookup.go"},
	{file: "vswitch/flow/fragment.go"},
	{file: "vswitch/forward.go"},
	{file: "vswitch/fragment.go"},
	{file: "vswitch/cut.go"},
	{file: "vswitch/guard.go"},
	{file: "vswitch/ingress.go"},
	{file: "vswitch/rewrite.go"},
	{file: "vswitch/queue.go"},
	{file: "vswitch/capture_ring.go", functions: []string{"reserve", "keep", "dropped", "publish"}},
	{file: "vswitch/stages.go"},
	{file: "vswitch/worker.go", functions: []string{"serve", "count", "lost", "stage", "flush"}},
	{file: "tap/queue.go", functions: []string{"Receive", "accept", "Transmit", "write", "read", "transmitReason"}},
	{file: "tap/vnet.go"},
	{file: "tunnel/vxlan/decap.go"},
	{file: "tunnel/vxlan/encap.go"},
	{file: "tunnel/vxlan/ecn.go"},
	{file: "tunnel/vxlan/header.go"},
}

// cold are the packages that hot code may not call.
var cold = []string{"fmt", "log", "log/slog", "time", "reflect", "encoding/json", "os"}

func TestHotCodeStaysCold(t *testing.T) {
	byName := map[string]*file{}
	for _, f := range files(t) {
		byName[f.name] = f
	}
	for _, h := range hot {
		f := byName[h.file]
		if f == nil {
			t.Errorf("%s is listed as hot and does not exist: correct the list", h.file)
			continue
		}
		locals := map[string]string{} // name in the file -> import path, of cold packages
		for _, spec := range f.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(cold, imported) {
				continue
			}
			if h.functions == nil {
				t.Errorf("%s is hot and imports %s", h.file, imported)
			}
			name := imported[strings.LastIndexByte(imported, '/')+1:]
			if spec.Name != nil {
				name = spec.Name.Name
			}
			locals[name] = imported
		}
		missing := slices.Clone(h.functions)
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || h.functions != nil && !slices.Contains(h.functions, fn.Name.Name) {
				continue
			}
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == fn.Name.Name })
			for where, what := range coldCode(fn.Body, locals) {
				t.Errorf("%s: %s is hot and uses %s", fset.Position(where), fn.Name.Name, what)
			}
		}
		for _, name := range missing {
			t.Errorf("%s: %s is listed as hot and does not exist: correct the list", h.file, name)
		}
	}
}

// coldCode finds what hot code may not do, by place.
func coldCode(body *ast.BlockStmt, coldNames map[string]string) map[token.Pos]string {
	found := map[token.Pos]string{}
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ReturnStmt:
			// return fmt.Errorf(...) is the queue's end, not a frame's.
			return !isErrorf(n, coldNames)
		case *ast.GoStmt:
			found[n.Pos()] = "a goroutine"
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && coldNames[x.Name] != "" {
				found[n.Pos()] = coldNames[x.Name] + "." + n.Sel.Name
			}
			switch n.Sel.Name {
			case "Lock", "RLock", "TryLock", "TryRLock", "Mutex", "RWMutex":
				found[n.Pos()] = "a lock (" + n.Sel.Name + ")"
			}
		}
		return true
	})
	return found
}

// isErrorf reports whether a return statement makes an error with fmt.
func isErrorf(r *ast.ReturnStmt, coldNames map[string]string) bool {
	return slices.ContainsFunc(r.Results, func(e ast.Expr) bool {
		call, ok := e.(*ast.CallExpr)
		if !ok {
			return false
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != "Errorf" {
			return false
		}
		x, ok := sel.X.(*ast.Ident)
		return ok && coldNames[x.Name] == "fmt"
	})
}

func TestColdCodeIsFound(t *testing.T) {
	src := `package p
import ("fmt"; "time")
func f() error {
	mu.Lock(); go g(); _ = time.Now(); h()
	fmt.Println()
	return fmt.Errorf("the queue is dead")
}`
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, what := range coldCode(f.Decls[len(f.Decls)-1].(*ast.FuncDecl).Body, map[string]string{"time": "time", "fmt": "fmt"}) {
		got = append(got, what)
	}
	slices.Sort(got)
	if want := []string{"a goroutine", "a lock (Lock)", "fmt.Println", "time.Now"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}
