// Ways for a Go program to die, chosen by the first argument. Run with GOTRACEBACK=crash.
package main

import (
	"fmt"
	"os"
)

type node struct {
	next  *node
	value int
}

//go:noinline
func last(n *node, depth int) int {
	if depth == 0 {
		return n.next.next.value
	}
	return last(n, depth-1) + 1
}

func main() {
	mode := "nil"
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	n := &node{value: 3}
	switch mode {
	case "nil":
		fmt.Println(last(n, 4))
	case "panic":
		panic("no way out")
	case "goroutine":
		done := make(chan int)
		go func() { done <- last(n, 2) }()
		fmt.Println(<-done)
	}
}
